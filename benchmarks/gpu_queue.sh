#!/usr/bin/env bash
# One item of the queue in docs/large_runs.md: go on with its training, stop in time, pack the result.
#
#   bash benchmarks/gpu_queue.sh ITEM [SECONDS]
#
# Stops itself after SECONDS (default 500), saved; the same command continues. Results of finished runs go to $OUT
# (default runs/gpu_queue) as ITEM.tar, in parts of 15 MB where it is larger (join them with cat).
set -u
item=${1:?usage: gpu_queue.sh ITEM [SECONDS], see docs/large_runs.md}
seconds=${2:-500}
out=${OUT:-runs/gpu_queue}
families="cheetah_vel cheetah_dir ant_dir hopper_rand_params walker_rand_params"
export MUJOCO_GL=disabled PYTHONUNBUFFERED=1

train() { # train RUN ARGUMENTS...: one training under saves/ of runs/RUN, until it is done or the time is up
    timeout -s TERM -k 40 "$seconds" python3 train_data_collection.py --output_dir "runs/$1" --no-tensorboard "${@:2}" \
        >"runs/$1.log" 2>&1
    echo "$1: status $? ($(tail -c 200 "runs/$1.log" | tr '\r' '\n' | tail -n 1))"
}

pack() { # pack RUN: what stage 2 needs, without the training state
    (cd "runs/$1" && find saves -name '*.json' -o -name '*.safetensors' -o -name metrics.jsonl | tar cf - -T -) |
        split -b 15M -d - "$out/$1.tar."
    ls -l "$out/$1".tar.*
}

mkdir -p runs "$out"
case $item in
multitask) # all families side by side, one core each for the updates
    for family in $families; do
        OMP_NUM_THREADS=2 train "multitask-$family" --env_type "$family" --recipe fast --device cpu &
    done
    wait
    for family in $families; do pack "multitask-$family"; done
    ;;
batched-*) # 50 agents in one stack
    family=${item#batched-}
    train "$item" --env_type "$family" --algo batched_sac --device "${DEVICE:-cuda}" --save_freq 20000
    pack "$item"
    ;;
paper-point_robot) # the paper's full recipe: world model of 301 epochs, 100,000 policy steps; SEED (default 0), QUALITY (medium)
    flags="--env_type point_robot --output_dir runs/$item --no-tensorboard"
    quality=${QUALITY:-medium}
    chosen="$flags --data_quality $quality --seed ${SEED:-0} --device ${DEVICE:-cuda}"
    [ -d "runs/$item/datasets/point_robot/$quality-v0" ] ||
        { python3 train_data_collection.py $flags && python3 get_datasets.py $flags --data_type "$quality"; } || exit 1
    timeout -s TERM -k 40 "$seconds" bash -c "python3 train_context.py $chosen && python3 train_meta_dt.py $chosen &&
        python3 train_meta_dt.py $chosen --zero_shot True"
    echo "$item: status $?"
    tar cf "$out/$item-$quality-${SEED:-0}.tar" -C "runs/$item" results
    ;;
processes) # one training in several processes: on the cores, and on the GPUs where there are several
    python3 -m benchmarks.processes | tee "$out/processes.md"
    gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
    [ "$gpus" -lt 2 ] && exit 0
    flags="--env_type point_robot --recipe fast --data_quality random --no-tensorboard --output_dir runs/$item"
    python3 get_datasets.py $flags --device cpu || exit 1
    for count in 1 "$gpus"; do # the curves of both are compared by eye: metrics.jsonl
        timeout -s TERM -k 40 "$seconds" torchrun --nproc_per_node "$count" train_context.py $flags --steps 2000 --no-resume
        cp "runs/$item/saves/point_robot/random/context+fast/seed_0/metrics.jsonl" "$out/processes-$count.jsonl"
    done
    ;;
*)
    echo "unknown item $item: multitask, paper-point_robot, processes, or batched-FAMILY with FAMILY one of $families" >&2
    exit 2
    ;;
esac
