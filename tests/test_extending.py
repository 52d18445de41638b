"""docs/extending.md: the code it shows is the code that is tested, and it works as the page says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from project_copy import ProjectCopy

from panoda.config import DECODERS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "extending.md"
SHOWN = re.compile(r"<!-- (tests/\w+\.py) -->\n```python\n(.*?)```\n", re.DOTALL)


@pytest.mark.parametrize(("file", "code"), SHOWN.findall(PAGE.read_text(encoding="utf-8")))
def test_the_page_shows_the_tested_code(file: str, code: str) -> None:
    assert (ROOT / file).read_text(encoding="utf-8") == code


STAGE = re.compile(r"`panoda/stages/palette.py`.*?```python\n(.*?)   ```.*?```python\n(.*?)   ```", re.DOTALL)


@pytest.mark.pipeline
@pytest.mark.slow
def test_a_method_a_decoder_and_a_stage_as_the_page_adds_them(tmp_path: Path) -> None:
    """All three in a copy of the project, through `dvc repro` from nothing to the report."""
    assert "linear_decoder" not in DECODERS
    project = ProjectCopy(tmp_path / "project", "city_small", doubles=False)
    for name, room in (("min_entropy", "methods"), ("linear_decoder", "models/decoders")):
        shutil.copy(ROOT / "tests" / f"{name}.py", project.folder / "panoda" / room)
    function, entry = STAGE.findall(PAGE.read_text(encoding="utf-8"))[0]
    (project.folder / "panoda/stages/palette.py").write_text(re.sub("(?m)^   ", "", function))
    table = project.folder / "panoda/pipeline/table.py"
    last = '        Stage(\n            "report",'
    assert last in table.read_text()
    table.write_text(table.read_text().replace(last, f"{entry.rstrip()},\n{last}"))
    project.run("python", "-m", "panoda.pipeline.write")

    project.set("model.decoder", "linear_decoder")
    adapt = re.search(r"```yaml\n(adapt:.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert adapt
    project.set("adapt", yaml.safe_load(adapt.group(1))["adapt"] | {"iterations": 2, "batch_size": 1})
    assert {"pretrain", "adapt", "palette", "report"} <= project.repro()
    history = (project.folder / "outputs/adapt/history.csv").read_text()
    assert "loss/entropy" in history
    assert (project.folder / "outputs/palette/palette.png").is_file()
    assert (project.folder / "reports/index.html").stat().st_size > 100_000
    assert "target test" in project.run("panoda", "summary").stdout
    assert project.repro() == set()
    method = project.folder / "panoda/methods/min_entropy.py"
    method.write_text(method.read_text() + "# changed\n")
    assert set(project.status()) == {"adapt", "rounds"}
