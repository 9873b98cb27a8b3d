"""The notebooks run from top to bottom, and what they say of their figures still holds."""

import pathlib

import pytest

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"


@pytest.mark.filterwarnings("ignore")
def test_the_page_on_samplers_runs_and_its_reading_holds():
    import nbclient
    import nbformat

    book = nbformat.read(NOTEBOOKS / "samplers.ipynb", as_version=4)
    # what the reading says, checked in the notebook's own variables
    claims = """
at = {name: dict(zip(CALLS, [e for _, e in found])) for name, found in (ode_error | sde_error).items()}
best = lambda table, calls: min(table, key=lambda name: at[name][calls])
assert best(ode_error, 8) == best(ode_error, 16) == best(ode_error, 32) == "deis"
assert best(ode_error, 64) == "unipc 3" and max(ode_error, key=lambda name: at[name][8]) == "rk4"
assert best(sde_error, 8) == best(sde_error, 16) == "er_sde"
assert all(at[name][32] < 1.2 * chance for name in ("dpmpp_3m_sde", "sa_solver"))
assert all(at[name][64] < 1.2 * chance for name in ("dpmpp_2m_sde", "seeds 3"))
assert all(at["dpmpp_3m"][c] < at["dpmpp_3m exact"][c] for c in CALLS)
assert at["euler_ancestral (= ddpm)"][64] > 1.5 * chance
assert same < 0.02 < 1 < fresh
"""
    book.cells.append(nbformat.v4.new_code_cell(claims))
    where = {"metadata": {"path": str(NOTEBOOKS.parent)}}
    nbclient.NotebookClient(book, timeout=240, kernel_name="python3", resources=where).execute()
    pictures = [o for c in book.cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1
