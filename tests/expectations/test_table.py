"""The layout of tables: never wider than a terminal, never broken by a name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.expectations.records import estimate, made_record, parsed
from xai_callbacks.expectations import Expectation, Outcome, Tally, check
from xai_callbacks.expectations.table import WIDTH, Line, lines_of, markdown_table, text_table


def test_one_audit_alone_has_no_history():
    verdicts = check(parsed("confidence > 0.5"), made_record({"confidence": estimate(0.61, 0.55, 0.66)}))
    assert text_table("One.", lines_of(verdicts)) == "\n".join(
        [
            "One.",
            "",
            "      expectation       measured",
            "pass  confidence > 0.5  0.61 [0.55, 0.66]",
        ]
    )


def test_history_shows_the_latest_audits():
    tally = Tally(parsed("confidence > 0.5"))
    for epoch in range(30):
        value = 0.9 if epoch < 25 else 0.1
        record = made_record({"confidence": estimate(value, value, value)})
        tally.add(check(tally.expectations, record, epoch), step=epoch, epoch=epoch)
    assert tally.table().splitlines()[3] == "FAIL  confidence > 0.5  0.1 [0.1, 0.1]  epoch 25      .......FFFFF"


names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=150).filter(str.isprintable)


@given(st.lists(st.tuples(names, st.floats(-1e300, 1e300), st.sampled_from(Outcome)), min_size=1, max_size=4))
def test_table_fits_whatever_the_names_and_numbers(rows):
    lines = []
    for name, value, outcome in rows:
        expectation = Expectation("confidence", ">", value, name=name)
        (verdict,) = check(
            [expectation.at(parsed("confidence > 0.5")[0].target)],
            made_record({"confidence": estimate(value / 3, value, value / 7)}),
        )
        lines.append(Line(expectation, verdict, "epoch 123456", (outcome,) * 40))
    for row in text_table("title " * 40, lines).split("\n"):
        assert len(row) <= WIDTH
        assert row == row.rstrip()


def test_name_cannot_break_out_of_its_cell():
    expectation = Expectation("confidence", ">", 0.5, name="a | b <script>`*_[x](y)_*`</script>")
    row = markdown_table("t", [Line(expectation, None)]).splitlines()[4]
    assert row == (r"|  | a \| b &lt;script&gt;\`\*\_\[x\](y)\_\*\`&lt;/script&gt;: confidence &gt; 0.5 |  |  |  |")
