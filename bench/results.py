"""The README's benchmark section and the plots of docs/, from the newest record of each device.

python -m bench.results
"""

from pathlib import Path

from bench import report
from bench.harness import Record

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "bench" / "results"
README, PLOTS = ROOT / "README.md", ROOT / "docs" / "plots"
BEGIN, END = "<!-- written by `make results` -->", "<!-- end of what `make results` writes -->"


def newest() -> list[Record]:
    """One record a device; names are dates, so the last is the newest."""
    folders = sorted(path for path in RECORDS.iterdir() if path.is_dir())
    return [Record.load(max(folder.glob("*.json"))) for folder in folders]


def section(text: str) -> str:
    """What stands between the marks."""
    return text.split(BEGIN)[1].split(END)[0]


def written(records: list[Record]) -> str:
    return f"\n\n{report.markdown(records)}\n\n"


def main() -> None:
    records = newest()
    text = README.read_text()
    README.write_text(text.replace(section(text), written(records)))
    for path in PLOTS.glob("*.svg"):
        path.unlink()
    for record in records:
        report.plot(record, PLOTS)


if __name__ == "__main__":
    main()
