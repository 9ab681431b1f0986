"""What stage 4 measures: the learning curve while a policy trains, and the result files of a trained one.

`args`: the settings of train_meta_dt.py. `run`: its Run, with the policy, the tasks and the target return.
"""

import numpy as np

from envs.render import record
from src.evaluation.evaluate import evaluate
from src.evaluation.exploration import Exploration
from src.evaluation.paper_protocol import PaperPool, evaluate_paper
from src.evaluation.references import reference_levels
from src.run.files import load_tensors, write_json
from src.run.paths import result_path
from src.run.provenance import provenance


def measure_curve(args, run, pool, step):
    """Mean closed-loop returns during training, on five training tasks and on the test (or validation) tasks.

    Under the paper's protocol the test tasks' pool grows by one episode each time, as in the official code.
    """
    agent, episodes = run.agent(args), args.curve_episodes
    warmup = args.warmup_episodes if run.with_prompts and step > args.prompt_start_step else 0
    train = evaluate(agent, args.env, run.train_tasks[:5], episodes, warmup, run.target, args.seed, explore(args))
    if pool is not None:
        test = evaluate_paper(agent, args.env, run.test_tasks, episodes, run.oracle, args.seed, pool, warmup > 0)
    else:
        test = evaluate(agent, args.env, run.test_tasks, episodes, warmup, run.target, args.seed, explore(args))
    run.policy.train()
    name = "validation_return" if args.validation else "test_return"
    return {"train_return": mean_return(train), name: mean_return(test)}


def explore(args):
    """The settings of the exploration, as `evaluate` takes them."""
    return Exploration(args.explore_steps, args.explore_noise, args.probe_steps, args.forget_exploration)


def mean_return(result):
    return round(float(np.mean(result["returns"])), 4)


def measure(args, run, directory, dataset, state, config, method):
    """The final evaluation: writes one result file per regime and prints what stands in it. Returns the paths."""
    run.policy.load_state_dict(load_tensors(directory / "model.safetensors"))
    agent, few_shot = run.agent(args), not args.zero_shot
    options = {"explore": explore(args), "pool_max": args.target == "pool_max", "keep": 3 if is_planar(dataset) else 0}
    episodes, warmup = args.eval_episodes, args.warmup_episodes if run.with_prompts else 0
    results, target = {}, run.target
    if args.protocol == "paper":
        target = run.oracle
        pool = state["pool"] if run.with_prompts else PaperPool()
        results["few_shot" if few_shot else "zero_shot"] = evaluate_paper(
            agent, args.env, run.test_tasks, episodes, target, args.seed, pool, run.with_prompts, grow=False
        )
    else:
        regime = "few_shot" if few_shot else "zero_shot"
        options |= {"later": args.later_episodes, "watch": film(args) if args.render else None}
        results[regime] = evaluate(agent, args.env, run.test_tasks, episodes, warmup, target, args.seed, **options)
        if run.with_prompts and args.prompt_dropout:  # trained without prompts too, so it may be asked without one
            results["few_trained_no_prompt"] = evaluate(
                agent, args.env, run.test_tasks, episodes, 0, target, args.seed, explore(args)
            )
    reference = reference_levels(args.env, args.env.make(), run.test_tasks, dataset)
    columns = {
        name: [record.get(name) for record in state["curve"]]
        for name in ("train_return", "validation_return", "test_return", "loss")
    }
    written = []
    for regime, result in results.items():
        document = {
            "env_type": args.env_type, "quality": args.data_quality, "method": method, "regime": regime,
            "protocol": args.protocol, "seed": args.seed, "task_ids": run.test_tasks, **result, "reference": reference,
            "target_return": target, "target_rule": "oracle" if args.protocol == "paper" else args.target,
            "task_parameters": {str(task): dataset.tasks[task] for task in run.test_tasks if task in dataset.tasks},
            "curve": {"gradient_steps": [record["step"] for record in state["curve"]], **columns},
            "gradient_steps": state["step"], "wall_clock_s": round(state["seconds"], 1),
            "dataset_sha256": dataset.metadata["sha256"], **provenance(), "config": config,
        }  # fmt: skip
        path = result_path(args, method, f"{regime}-{args.protocol}")
        write_json(path, document)
        written.append(path)
        report(document, path)
    return written


def film(args):
    """Function for `evaluate` that plays the actions of its first row again, in front of the camera."""

    def watch(task_ids, seeds, episode):
        actions = iter(episode["actions"][0])
        returned = record(args.env.make("rgb_array"), lambda _: next(actions), args.render, int(task_ids[0]), int(seeds[0]))
        print(f"task {task_ids[0]}, return {returned:.4g}: {args.render}")

    return watch


def is_planar(dataset):
    """Observations are positions in the plane: their paths can be drawn."""
    return dataset.observations.shape[-1] == 2


def report(document, path):
    """One line per result; the reference levels stand beside it."""
    levels = {name: np.mean(values) for name, values in document["reference"].items() if values}
    beside = ", ".join(f"{name} {value:.4g}" for name, value in levels.items())
    warmups = document.get("warmup_returns")
    by_episode = f" (warm-up episodes {', '.join(f'{v:.4g}' for v in np.mean(warmups, (0, 1)))})" if warmups else ""
    print(
        f"{document['method']} {document['regime']} {document['protocol']}: return {mean_return(document)}{by_episode}; {beside}"
    )
    print(f"  written to {path}")
