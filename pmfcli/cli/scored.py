"""What `pmf evaluate` says about a test."""

from pmfcli.console import Row, note

COLUMNS = ("group", "ratings", "n", "rmse", "mae", "rmse_bias", "rmse_mean", "nll", "crps", "inside_90")


def rows(result: Row) -> list[Row]:
    """All ratings, then groups of them by the number of training ratings, as rows of ``COLUMNS``."""
    beside = {f"rmse_{name}": result["baselines"][name]["rmse"] for name in ("bias", "mean")}
    found = [{"group": "all", **result, **beside}]
    for group in ("user", "movie"):
        found += [{"group": f"{group}s with", **part} for part in result[f"by_{group}_ratings"]]
    return [{name: (row | {"inside_90": row["coverage"]["0.9"]}).get(name) for name in COLUMNS} for row in found]


def describe(result: Row, own_file: bool) -> None:
    """Notes on a result for people, and warnings where it is not a real test, or not good.

    Args:
        own_file: the test came from a file of its own, and so may be of other data.
    """
    if result["n_cold"]:
        note(f"{result['n_cold']:,} of {result['n']:,} test ratings have a user or movie that is not in training")
    if result["n_trained_on"]:
        note(
            f"warning: {result['n_trained_on']:,} of {result['n']:,} test pairs were in the training data: not a held-out test"
        )
    inside, width, auc = result["coverage"]["0.9"], result["width"]["0.9"], result["auc_sd"]
    told = "" if auc is None else f"; sd tells errors over {result['large_error']:g} from smaller ones with AUC {auc:.2f}"
    note(f"the 90 % intervals cover {100 * inside:.1f} % of the ratings and are {width:.2f} wide{told}")
    if result["ranking"]:
        _describe_ranking(result["ranking"])
    if result["n_off_grid"]:
        note(
            f"warning: {result['n_off_grid']:,} of {result['n']:,} test ratings have a value that is not in training: "
            "NLL and CRPS take the nearest instead"
        )
    if result["n_cold"] == result["n"]:
        doubt = "; is it the right file, are the ids the same?" if own_file else ""
        note(f"warning: no test rating has both its user and its movie in training{doubt}")
    elif result["rmse"] > result["baselines"]["mean"]["rmse"]:
        doubt = "is the scale the same? If so, try" if own_file else "try"
        note(f"warning: worse than always predicting the mean; {doubt} the default settings, or what pmf tune finds")


def _describe_ranking(found: Row) -> None:
    if not found["users"]:
        note("ranking: no test rating in the upper quarter of the scale is of a known user and a movie new to them")
        return
    popular = found["popular"]
    note(
        f"ranking, {found['users']:,} users, all movies they had not rated in training: the top {found['k']} include "
        f"{100 * found['recall']:.1f} % of those that they liked in the test, NDCG {found['ndcg']:.3f}; "
        f"the most rated {found['k']} include {100 * popular['recall']:.1f} %, NDCG {popular['ndcg']:.3f}"
    )
