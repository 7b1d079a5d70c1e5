# syntax=docker/dockerfile:1
# p2pnode with everything that a host, a wallet, a gateway and a development chain need, run as a user.
#   docker build -t p2pnode .
#   docker run --rm -it -v p2pnode:/data -p 4001:4001 -p 4002:4002 p2pnode join --data-dir /data
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml MANIFEST.in README.md LICENSE ./
COPY chain chain
COPY models models
COPY protocols protocols
COPY simulations simulations
COPY storage storage
COPY p2pnode p2pnode
RUN python -m venv /opt/p2pnode \
    && /opt/p2pnode/bin/pip install --no-cache-dir -c constraints.txt '.[host,s5,gateway,metrics,dev-chain]'

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 p2pnode \
    && install -d -o p2pnode -g p2pnode -m 0700 /data \
    && install -d -o p2pnode -g p2pnode -m 0755 /chain
COPY --from=build /opt/p2pnode /opt/p2pnode
COPY --chmod=0755 docker/dev-node.sh /usr/local/bin/p2pnode-dev-node
ENV PATH=/opt/p2pnode/bin:$PATH PYTHONUNBUFFERED=1
USER p2pnode
WORKDIR /home/p2pnode
VOLUME ["/data"]
EXPOSE 4001 4002
# A node that is stopped lets answers end and settles.
STOPSIGNAL SIGTERM
ENTRYPOINT ["p2pnode"]
CMD ["join", "--data-dir", "/data"]
