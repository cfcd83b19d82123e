"""Shares and decibels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from made_run import write_run

from hwprune.core.files import read_json, write_json
from hwprune.report.html import render
from hwprune.report.run_data import Result, RunData
from hwprune.report.score_text import above_text, change_text, interval_text, score_text
from hwprune.report.text import search_text


def test_a_share() -> None:
    assert score_text("top-1", 0.98887) == "98.9 %"
    assert score_text("top-1", None) == "-"
    assert change_text("top-1", -0.0021) == "-0.2 points"
    assert interval_text("top-1", 0.014, -0.004, 0.032) == "+1.4 [-0.4, +3.2]"
    assert above_text("top-1", "greedy") == "points of top-1 above greedy"


def test_terminal_and_report_write_a_score_in_one_way(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    run = RunData.read(folder)
    assert run.result.score == 0.9721
    assert "top-1 97.2 % (-0.9 points)" in search_text(run.result)
    visible = render(run).partition("<script")[0]
    assert "<b>97.2 %</b><span>top-1</span><span>dense 98.1 %, -0.9 points</span>" in visible
    assert "97.21" not in visible
    assert read_json(folder / "result.json")["score"] == 0.9721


def test_decibels() -> None:
    assert score_text("PSNR (dB)", 31.2, 1) == "31.2 dB"
    assert change_text("PSNR (dB)", -0.314) == "-0.31 dB"
    assert interval_text("PSNR (dB)", 0.144, 0.1, 0.2) == "+0.14 [+0.10, +0.20]"
    assert above_text("PSNR (dB)", "greedy") == "dB of PSNR above greedy"


def test_a_report_of_a_denoiser_knows_no_percent_of_a_decibel(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    result = Result.from_json(read_json(folder / "result.json"))
    denoised = dataclasses.replace(
        result, score_name="PSNR (dB)", score=31.2, dense_score=31.5, scores={"dense": 31.5, "finetuned": 31.2}
    )
    assert "PSNR (dB) 31.20 (-0.30 dB)" in search_text(denoised)
    write_json(folder / "result.json", denoised.to_json())
    page = render(RunData.read(folder))
    assert "<b>31.20 dB</b>" in page
    assert "-0.30 dB" in page
    assert "3120" not in page.partition("<script")[0]
