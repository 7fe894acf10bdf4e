"""The README's benchmark section, docs/benchmarks.md and its plots, from the newest records of each device. Prints
which targets they reach.

python -m bench.results
"""

from pathlib import Path

from bench import report, targets
from bench.harness import Record

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "bench" / "results"
README, PAGE, PLOTS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "plots"
BEGIN, END = "<!-- written by `make results` -->", "<!-- end of what `make results` writes -->"


def newest(folder: Path = RECORDS) -> list[Record]:
    """The newest result of each workload on each device, a folder each. Names begin with the date, so the last record
    is the newest; an older one keeps what was not measured again."""
    records = []
    for device in sorted(path for path in folder.iterdir() if path.is_dir()):
        measured: set[str] = set()
        for path in sorted(device.glob("*.json"), reverse=True):
            record = Record.load(path)
            results = [result for result in record.results if result.name not in measured]
            measured |= {result.name for result in results}
            if results:
                records.append(Record(record.environment, results))
    return records


def rewritten(text: str, figures: str) -> str:
    """The text with what stands between the marks made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}"


def main() -> None:
    records = newest()
    for path, figures in ((README, report.summary(records)), (PAGE, report.page(records))):
        path.write_text(rewritten(path.read_text(), figures))
    for old in PLOTS.glob("*.svg"):
        old.unlink()
    for record in records:
        for result in record.results:
            report.draw(record, result, PLOTS)
    for device in {str(record.environment["device"]): None for record in records}:
        measured = [result for record in records if record.environment["device"] == device for result in record.results]
        print(f"{device}\n{targets.table(measured)}")


if __name__ == "__main__":
    main()
