import io

from PIL import Image

from pipeline.search.pareto import pareto_front, pareto_png
from tests.pipeline.search.test_record import RECORDS


def test_the_front_has_what_no_other_beats() -> None:
    assert [one.name for one in pareto_front(RECORDS)] == ["cheap", "best"]
    assert Image.open(io.BytesIO(pareto_png(RECORDS))).size == (960, 600)
