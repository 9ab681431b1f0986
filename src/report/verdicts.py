"""Who wins where, by how much, how sure: sentences from the records of the main tables (src/report/overview.py)."""

from src.report.overview import data_set_of, data_sets, difference, main_rows, rank_of, row_key, row_name, sure


def verdicts(rows, group):
    """(summaries, sentences) of one group of regimes: who leads on how many data sets, for each of the things that training was
    given; and of every data set with two rows or more who leads, by how much and how sure that is."""
    shown = main_rows(rows, group)
    sentences, leaders = [], {}
    for key, name in data_sets(shown).items():
        ranked = {}  # what training was given -> its rows, the best first
        for row in sorted((row for row in shown if data_set_of(row) == key), key=lambda row: -row["score"]):
            ranked.setdefault(row["privileges"], []).append(row)
        if any(map(_contested, ranked.values())):
            parts = [_ranking(given, ranked[given]) for given in sorted(ranked, key=rank_of)]
            sentences.append(f"{name}, {group.lower()}: {'; '.join(parts)}.")
        for given, (best, *others) in ranked.items():
            if _contested(ranked[given]):
                certain = all(sure(best, row) for row in others)
                leaders.setdefault(given, {}).setdefault(_told_name(best), []).append(certain)
    return [_summary(group, given, leaders[given]) for given in sorted(leaders, key=rank_of)], sentences


def _contested(ranked):
    """Whether there are rows of several methods or recipes, and not only several regimes of one."""
    return len({row["row"] for row in ranked}) > 1


def _summary(group, given, leaders):
    """ "Few-shot, given nothing beyond the data, 3 data sets: dt+compare leads on 2 (surely on 1), …" """
    parts = []
    for name, certain in sorted(leaders.items(), key=lambda item: (-len(item[1]), item[0])):
        how = "surely" if all(certain) else f"surely on {sum(certain)}" if any(certain) else "not surely"
        parts.append(f"{name} leads on {len(certain)} ({how})")
    count = sum(map(len, leaders.values()))
    return f"{group}, given {_said(given)}, {count} data set{'s' * (count > 1)}: {', '.join(parts)}."


def _ranking(given, ranked):
    """The best row, how far the next one is behind, and the place of Meta-DT where it is neither of these."""
    best, *others = ranked
    text = f"given {_said(given)}, {_with_score(best)}"
    if not _contested(ranked):
        return f"{text} (ranked apart)"
    text += f" leads, {_told_name(others[0])} is {_behind(best, others[0])}"
    own = next((row for row in ranked if row["method"] == "meta_dt"), best)
    if own is not best and own is not others[0]:
        text += f", {_told_name(own)} is {_behind(best, own)} at place {ranked.index(own) + 1} of {len(ranked)}"
    return text


def _behind(best, row):
    value, low, high = difference(best, row)
    if low is None:
        return f"{value:.2f} behind (one seed: not sure)"
    return f"{value:.2f} behind [{low:.2f}, {high:.2f}] ({'sure' if low > 0 else 'not sure'})"


def _with_score(row):
    interval = "" if row["score_low"] is None else f" [{row['score_low']:.2f}, {row['score_high']:.2f}]"
    return f"{_told_name(row)} with {row['score']:.2f}{interval}"


def _told_name(row):
    return row_name(row_key(row)).replace("\n", ", ")


def _said(given):
    return "nothing beyond the data" if given == "none" else f"the {given}"
