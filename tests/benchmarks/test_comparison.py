"""Which figures are put against which, and what is said about them."""

import pytest

from benchmarks import comparison
from benchmarks.workload import Workload


def run(**rates: list[float]) -> dict:
    """Figures as `benchmarks.model.measure` returns them; names with `__` for `+`."""
    subjects = {
        name.replace("__", "+"): {
            "tokens_per_second": given,
            "ffn_experts_per_token": 1.25 if name.startswith("ours_moepp") else 2.0,
            "peak_bytes": 1000 * (index + 1),
            "peak_bytes_over_start": 500,
            "parameters": 10,
        }
        for index, (name, given) in enumerate(rates.items())
    }
    return {"subjects": subjects, "peak": {"mean": 1e12, "best": 2e12}, "failures": {}}


def pairs(measured: dict, work: Workload) -> dict:
    return {(r["numerator"], r["denominator"]): (r["median"], r["to_reach"]) for r in comparison.ratios(measured, work)}


def test_a_peer_counts_as_its_users_run_it_and_with_our_settings():
    measured = run(hf_olmoe_bf16=[1.0, 2.0], hf_olmoe_bf16__kept=[2.0, 4.0], ours_vanilla=[4.0, 8.0])
    assert pairs(measured, Workload()) == {
        ("ours_vanilla", "hf_olmoe_bf16"): (4, 4.0),
        ("ours_vanilla", "hf_olmoe_bf16+kept"): (2, 4.0),
    }


def test_a_peer_with_the_allocator_s_settings_has_a_target_of_its_own():
    measured = run(hf_llama_bf16=[1.0], hf_llama_bf16__kept=[1.25], ours_vanilla=[2.0])
    assert pairs(measured, Workload()) == {
        ("ours_vanilla", "hf_llama_bf16"): (2, 2.0),
        ("ours_vanilla", "hf_llama_bf16+kept"): (1.6, 1.7),
    }


def test_ours_are_compared_with_the_same_settings_only():
    measured = run(ours_vanilla=[1.0], ours_vanilla__compiled=[2.0], ours_moepp__compiled=[3.0])
    assert set(pairs(measured, Workload())) == {("ours_moepp+compiled", "ours_vanilla+compiled")}


def test_targets_hold_for_their_own_workload_only():
    measured = run(hf_olmoe_bf16=[1.0], ours_vanilla=[4.0])
    assert pairs(measured, Workload(batch=4))[("ours_vanilla", "hf_olmoe_bf16")] == (4, None)


def test_memory_is_held_against_the_mixture_that_takes_least():
    measured = run(hf_llama_bf16=[1.0], hf_olmoe_bf16=[1.0], hf_olmoe_bf16__kept=[1.0], ours_vanilla=[1.0])
    assert comparison.memory(measured) == {"ours_vanilla": {"peer": "hf_olmoe_bf16", "ratio": 2.0}}
    assert comparison.memory(run(hf_llama_bf16=[1.0], ours_vanilla=[1.0])) == {}


def test_work_that_wasnt_done_counts_for_nothing():
    """At one speed, a token that passes fewer experts means a smaller share of the peak, a wider router a larger."""
    measured = run(ours_moepp=[1000.0], ours_vanilla=[1000.0], ours_dense=[1000.0])
    comparison.add_shares(measured, Workload())
    share = {name: figures["share_of_mean_peak"] for name, figures in measured["subjects"].items()}
    assert share["ours_moepp"] < share["ours_dense"] < share["ours_vanilla"]
    for figures in measured["subjects"].values():
        assert figures["share_of_mean_peak"] == pytest.approx(2 * figures["share_of_best_peak"])


def test_tables_name_failures_and_every_subject():
    measured = run(hf_olmoe_bf16=[100.0], ours_vanilla=[400.0])
    comparison.add_shares(measured, Workload())
    measured["failures"]["hf_llama_bf16"] = "hf_llama_bf16: the process ended with code -9"
    text = comparison.show(measured, Workload())
    (row,) = [line.split() for line in text.splitlines() if "ours_vanilla / hf_olmoe_bf16" in line]
    assert row[3] == "4.00" and row[-4:] == [">=", "4.00", "with", "AMX"], "the row says for which CPUs its target is"
    assert "peak memory of ours_vanilla: 2.00 x" in text and "to reach with AMX: <= 0.70" in text
    other = comparison.show(measured, Workload(batch=4))
    assert ">= 4.00" not in other and "<= 0.70" not in other
    assert "no figures: hf_llama_bf16: the process ended with code -9" in text
