"""``join --auto``: choose what to serve, fetch it, measure it and price it, without a question.

What is chosen and why is ``auto_choice.py``'s; this asks the machine and the network, and does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import trio

from p2pnode.config import ModelSettings, NodeConfig
from p2pnode.errors import ConfigError, EngineError
from p2pnode.host.auto_choice import Choice, Demand, choose, demand_seen
from p2pnode.host.model_pool import Report
from p2pnode.ids import ModelId
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.engine import Engine, GenerateRequest, Tokens
from p2pnode.models.engines import EngineSpec, available_engines, engine_name_for, make_engine
from p2pnode.models.hardware import machine_here, option_of
from p2pnode.models.licences import is_free, tell_licence
from p2pnode.models.local_models import installed
from p2pnode.models.pull.pull import pull
from p2pnode.models.recommendation import TOKENS_PER_S_LEAST, Option
from p2pnode.node.datadir import DataDir
from p2pnode.payments.books import profile_of_config
from p2pnode.payments.price_suggestion import median_price, suggest
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, SamplingParams

_MEASURED_TOKENS = 32
_QUESTION = "Write a few sentences about the sea."


async def choose_models(config: NodeConfig, adverts: Sequence[Advert], report: Report) -> tuple[Choice, ...]:
    """Choose by the machine and the network. What is chosen is reported, with what is left out.

    Raises ``ConfigError`` where nothing of the catalogue can be served here.
    """
    data, demand = DataDir(config.data_dir), demand_seen(adverts)
    machine = await machine_here(data.root, data.models, memory=config.memory)
    options = await trio.to_thread.run_sync(options_for, data, demand)
    plan = choose(options, demand, machine)
    report(
        "auto.plan",
        {
            "memory": machine.memory,
            "cores": machine.cores,
            "hosts_seen": len(adverts),
            "models": [{"name": c.option.name, "serve": c.serve, "why": c.why} for c in plan],
        },
    )
    if not any(each.serve for each in plan):
        whys = "; ".join(f"{each.option.name}: {each.why}" for each in plan)
        raise ConfigError(f"no model of the catalogue can be served here ({whys}): name one, or free memory")
    return plan


async def deploy(
    config: NodeConfig, plan: Sequence[Choice], adverts: Sequence[Advert], report: Report
) -> NodeConfig:
    """The configuration that serves what was chosen: each is pulled, verified, measured and priced.

    One that turns out too slow, or can't be loaded, is left out and said. Raises ``ConfigError`` where that
    leaves none, ``LocalError`` where a model can't be fetched.
    """
    settings: dict[str, ModelSettings] = {}
    for each in plan:
        if not each.serve:
            continue
        name = each.option.name
        try:
            speed = await _measured(config, name, report)
        except EngineError as error:
            report("auto.left_out", {"name": name, "why": str(error)})
            continue
        if speed < TOKENS_PER_S_LEAST:
            report("auto.left_out", {"name": name, "why": f"{speed:.1f} tokens/s: too slow for anybody"})
            continue
        price, why = await _price(config, each.option, adverts)
        settings[name] = price.over(config.per_model.get(name, ModelSettings()))
        fields = {"price_in": price.price_in or 0, "price_out": price.price_out or 0}
        report("auto.serves", {"name": name, "tokens_per_s": round(speed, 1), **fields, "why": why})
    if not settings:
        raise ConfigError("none of the chosen models can be served here: name one, as `p2pnode join MODEL`")
    return replace(config, models=tuple(settings), per_model=settings)


def options_for(data: DataDir, demand: Mapping[ModelId, Demand]) -> list[Option]:
    """Models that could be served: those of the catalogue that ships, and of subscribed lists such as others
    serve already, under a free licence. A curator alone makes no node fetch gigabytes.

    Blocks on the disk.
    """
    engines, here = available_engines(), {each.model_id: each for each in installed(data.models)}
    found = dict[ModelId, Option]()
    for entry in Catalogue.of(data.models).every_entry():
        model = entry.model_id
        if model is None or model in found:
            continue
        if entry.list_name and not (model in demand and is_free(entry.licence)):
            continue
        found[model] = option_of(entry, here.get(model), engines, data.root)
    return list(found.values())


async def _measured(config: NodeConfig, name: str, report: Report) -> float:
    """Pull a model, and measure how many tokens it makes a second, one request alone."""
    entry = Catalogue.of(DataDir(config.data_dir).models).find(name)
    report("model.pulling", {"name": entry.name})

    def progress(done: int, total: int | None) -> None:
        report("model.progress", {"name": entry.name, "done": done, "total": total})

    models_dir = DataDir(config.data_dir).models
    local = await pull(entry, models_dir, progress=progress, on_download=partial(tell_licence, report))
    engine_name = engine_name_for(local, config.engine)
    spec = EngineSpec(name=engine_name, n_ctx=512, slots=1, threads=config.threads or None)
    engine = make_engine(spec, local)
    try:
        return await tokens_per_s(engine)
    finally:
        with trio.CancelScope(shield=True):
            await engine.aclose()


async def tokens_per_s(engine: Engine) -> float:
    """How fast an engine makes the tokens of one answer, the first one apart. Raises ``EngineError``."""
    await engine.load()
    sampling = SamplingParams(tokens_max=_MEASURED_TOKENS, temperature=0)
    body = PromptBody(messages=(ChatMessage.of("user", _QUESTION),), sampling=sampling, seed=bytes(16))
    compiled = await engine.prompt(body)
    request = GenerateRequest(prompt_ids=compiled.ids, sampling=sampling, seed=1, cache_key=b"auto")
    began, made = None, 0
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, Tokens) and began is None:
                began = trio.current_time()
            elif isinstance(event, Tokens):
                made += len(event.ids)
    took = trio.current_time() - began if began is not None else 0.0
    if not made or took <= 0:
        raise EngineError("it made no text")
    return made / took


async def _price(config: NodeConfig, option: Option, adverts: Sequence[Advert]) -> tuple[ModelSettings, str]:
    """What to ask for a model, and why."""
    if config.price_in or config.price_out:
        return ModelSettings(), "the prices that were given"
    if profile_of_config(config) is None:
        return ModelSettings(price_in=0, price_out=0), "there is no chain to be paid on (--chain)"
    if config.ether_usd:
        found = await suggest(replace(config, models=(option.name,)), config.ether_usd)
        if found.price_in is not None and found.price_out is not None:
            settings = ModelSettings(
                price_in=found.price_in, price_out=found.price_out, session_fee=found.session_fee
            )
            return settings, f"the median of {found.asked} hosts, and a fee for the gas of a session"
    offers = [offer for advert in adverts if (offer := advert.offer(option.model)) is not None]
    median = median_price((offer.price_in, offer.price_out) for offer in offers)
    if median is None:
        return ModelSettings(price_in=0, price_out=0), "nobody that is seen asks money for it"
    return ModelSettings(price_in=median[0], price_out=median[1]), "the median of those who ask money for it"
