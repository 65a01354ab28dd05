#!/usr/bin/env bash
# Packages that decide tokens, weights and rewards, as the CPU lock has them: every other lock takes the same versions.
cd "$(dirname "$0")"
grep -E '^(accelerate|huggingface-hub|math-verify|safetensors|tokenizers|transformers)==' requirements-cpu.lock
