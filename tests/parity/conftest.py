"""`pytest tests/parity --fixtures DIR`: one test for each file of DIR, named after it.

pytest has an option of that name, too, a flag that lists its own fixtures; with a folder behind it, it is ours.
"""

from pathlib import Path

import pytest

OWN = Path(__file__).parent / "fixtures"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Takes `--fixtures DIR` from the command line before pytest lists fixtures and looks for tests in DIR."""
    given = [str(arg) for arg in config.invocation_params.args]
    folder = next((after for arg, after in zip(given, given[1:], strict=False) if arg == "--fixtures"), None)
    if folder is None or folder not in config.args or folder.startswith("-"):
        return
    config.args.remove(folder)
    config.option.showfixtures = False
    config.option.parity_fixtures = str((config.invocation_params.dir / folder).resolve())  # processes of xdist get it


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Files in the order of their names. Raises UsageError for a folder without any."""
    if "fixture_path" not in metafunc.fixturenames:
        return
    folder = Path(getattr(metafunc.config.option, "parity_fixtures", OWN))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise pytest.UsageError(f"--fixtures {folder}: no *.safetensors there")
    metafunc.parametrize("fixture_path", files, ids=[path.stem for path in files])
