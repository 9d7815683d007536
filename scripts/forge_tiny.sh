#!/bin/sh
# Makes embedforge:forge-tiny anew, from text to the folder in the package; docs/forge-tiny.md.
#
#   scripts/forge_tiny.sh PRETRAIN OPEN TEACHER WORK
#
# PRETRAIN and OPEN: folders as scripts/forge_tiny_texts.py describes them. TEACHER: all-MiniLM-L6-v2, a folder or a hub
# id. Stopped at any point, the same command goes on from there.
set -eu
pretrain=$1 open=$2 teacher=$3 work=$4
data=$work/data

[ -e "$data/texts.jsonl" ] || python scripts/forge_tiny_texts.py --pretrain "$pretrain" --open "$open" --out "$data" --texts 500000
[ -e "$data/pairs.jsonl" ] || python scripts/forge_tiny_pairs.py --pretrain "$pretrain" --open "$open" --out "$data/pairs.jsonl"
[ -e "$data/code.jsonl" ] || python scripts/forge_tiny_code.py --out "$data" --dev "$work/dev" \
    --packages "$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
[ -e "$work/dev/sts" ] || python scripts/forge_tiny_dev.py --open "$open" --out "$work/dev"
embedforge base get smollm2-135m
embedforge train forge-tiny --data "$data" --out "$work/run" --resume \
    --set stages.static.objective.teacher="$teacher" --set stages.pairs.objective.terms.1.teacher="$teacher"
python scripts/forge_tiny_finish.py "$work/run/model" --texts "$data/texts-009.jsonl"
embedforge evaluate embedforge:forge-tiny "$teacher" bm25 --tasks "$work/dev" --max-tokens 256 --dtype float32 \
    --out "$work/evaluation"
