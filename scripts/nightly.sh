#!/usr/bin/env bash
# Exports every recipe in export/, verifies each bundle, builds its engines with TensorRT-RTX, and compares quantization with its peers: figures go to nightly/.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p nightly
export PYTHONPATH=examples
python -m av_digits.train                          # models that recipes export
python examples/keras_classic.py
python examples/zoo/minilm.py .cache/zoo/minilm   # files that recipes read
python examples/zoo/speech_embedding.py .cache/zoo
python examples/zoo/whisper.py .cache/zoo
python examples/zoo/faces.py .cache/zoo
python examples/zoo/captioner.py .cache/zoo/captioner
# NVIDIA's own builder without a GPU: on every TensorRT variant, and on the fp32 graphs of recipes that are for none.
build_engines() {
    edge-mbm compile "nightly/$1.mbm" --target rtx --capability SM86 --rebuild --json > "nightly/$1.engines.json"
}

failed=()
exported=()
for recipe in export/*.toml; do                   # one that fails does not hide the others
    name=$(basename "$recipe" .toml)
    echo "== $name"
    exported+=("nightly/$name.json")
    began=$SECONDS
    edge-mbm export "$recipe" -o "nightly/$name.mbm" --json > "nightly/$name.json" &&
        edge-mbm verify "nightly/$name.mbm" &&
        build_engines "$name" || failed+=("$name")
    echo "== $name: $((SECONDS - began)) s"
done
python scripts/nightly_table.py "${exported[@]}" | tee nightly/recipes.md
python benchmarks/quantization.py --fused --json nightly/quantization.json | tee nightly/quantization.txt
if ((${#failed[@]})); then
    echo "not exported, not verified, or not built: ${failed[*]}" >&2
    exit 1
fi
