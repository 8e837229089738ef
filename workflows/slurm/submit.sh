#!/usr/bin/env bash
# A study as a Slurm job array: one slide per task, nothing between the nodes but the run folder; then one job that makes
# the tables and the report. Run it again to go on: what is finished is kept.
#
#   workflows/slurm/submit.sh STUDY.csv RECIPE.toml OUT [further options of sbatch, as --partition=main]
#
# CORES=4 MEMORY_MB=16000 WALLTIME=04:00:00   of each job
# AT_ONCE=100                                  tasks that may run at the same time
# TASKS=1000                                   tasks at most; with more slides than that a task takes several
# WARNING_S=120                                seconds before the walltime at which a task stops and queues again
# HISTOQUANT=histoquant                        the command, as the nodes find it
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
HQ_STUDY=$(realpath "$1") HQ_RECIPE=$(realpath "$2") HQ_OUT=$(realpath -m "$3")
shift 3
HQ_COMMAND=${HISTOQUANT:-histoquant} HQ_LOGS=$HQ_OUT.jobs HQ_SLIDES=$HQ_OUT.jobs/slides.txt
cores=${CORES:-4} memory_mb=${MEMORY_MB:-16000} walltime=${WALLTIME:-04:00:00} most=${TASKS:-1000}

mkdir -p "$HQ_LOGS"
# Slides that cannot be opened are named now and left to the last job, which lists them in failures.csv.
"$HQ_COMMAND" check "$HQ_STUDY" --recipe "$HQ_RECIPE" --json > "$HQ_LOGS/check.json" || [ $? -eq 2 ]
python3 - "$HQ_LOGS/check.json" > "$HQ_SLIDES" <<'PYTHON'
import json, sys
told = json.load(open(sys.argv[1]))
for fault in told["faults"]:
    print(fault["slide"] + ":", fault["error"], fault["remedy"], file=sys.stderr)
print(*told["sound"], sep="\n", end="\n" if told["sound"] else "")
PYTHON
slides=$(wc -l < "$HQ_SLIDES")
[ "$slides" -gt 0 ] || { echo "submit.sh: no slide can be analysed." >&2; exit 2; }
HQ_TASKS=$((slides < most ? slides : most))
name=histoquant-$(basename "$HQ_OUT")
export HQ_STUDY HQ_RECIPE HQ_OUT HQ_COMMAND HQ_LOGS HQ_SLIDES HQ_TASKS
# 5 % of the memory is for the shell and for what Slurm counts and the run does not see.
HQ_MEMORY_GB=$(awk "BEGIN { print 0.95 * $memory_mb / 1000 }") HQ_CORES=$cores
export HQ_MEMORY_GB HQ_CORES

options=(--job-name="$name" --nodes=1 --ntasks=1 --cpus-per-task="$cores" --mem="${memory_mb}M" --time="$walltime"
         --requeue --open-mode=append --signal="B:USR1@${WARNING_S:-120}" "$@")

# Both jobs: at the warning before the walltime the work is ended, which loses the blocks that are being computed and
# nothing else, and the job queues again. bash acts on a signal only while it waits, so the work runs beside it.
work='
again() {
  kill -TERM "$running" 2>/dev/null
  wait "$running"
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    echo "$(date): stopped before the walltime, queued again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60
  fi
  exit 1
}
trap again USR1
ended=0
measure() {
  "$HQ_COMMAND" run "$HQ_STUDY" --recipe "$HQ_RECIPE" --out "$HQ_OUT" --workers "$HQ_CORES" \
    --memory "$HQ_MEMORY_GB" "$@" &
  running=$!
  wait "$running" || ended=$?
}'

array=$(sbatch --parsable "${options[@]}" --array="0-$((HQ_TASKS - 1))%${AT_ONCE:-100}" --output="$HQ_LOGS/%A_%a.log" <<JOB
#!/usr/bin/env bash
$work
mapfile -t slides < "\$HQ_SLIDES"
for ((i = SLURM_ARRAY_TASK_ID; i < \${#slides[@]}; i += HQ_TASKS)); do
  measure --slide "\${slides[i]}"
done
exit \$ended
JOB
)
tables=$(sbatch --parsable "${options[@]}" --dependency="afterany:$array" --output="$HQ_LOGS/%j.log" <<JOB
#!/usr/bin/env bash
$work
measure
exit \$ended
JOB
)
echo "Slides:   job $array, $HQ_TASKS task(s) for $slides slide(s)"
echo "Tables:   job $tables, when they have ended"
echo "Logs:     $HQ_LOGS"
echo "Progress: histoquant status $HQ_OUT"
echo "Stop:     scancel $array $tables"
