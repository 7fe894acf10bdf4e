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


def rewritten(text: str, records: list[Record]) -> str:
    """The text with what stands between the marks made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{report.markdown(records)}\n\n{END}{after}"


def main() -> None:
    records = newest()
    README.write_text(rewritten(README.read_text(), records))
    for path in PLOTS.glob("*.svg"):
        path.unlink()
    for record in records:
        report.plot(record, PLOTS)


if __name__ == "__main__":
    main()
