"""Plugins as pip leaves them: distributions with entry points on sys.path."""

import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint

import pytest
import torch

from streaming.blend import naive
from streaming.errors import UserError
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.registry import (
    BACKBONES,
    BLENDERS,
    LONG_TERM_MEMORIES,
    SHORT_TERM_MEMORIES,
    discover,
    load,
    load_all,
    make_backend,
    make_blender,
    make_long_term,
    make_short_term,
    open_enhancer,
    open_model,
)
from tests.toys import toy

GROUP = "streaming.test_plugins"

BACKEND = """
from streaming.model import Backend, Defaults, Model
from tests.toys import LetterText, MeanCodec, OneParameter

OPENED = []


class Family(Backend):
    def describe(self):
        return "a family of toys"

    def matches(self, directory):
        return (directory / "{mark}").is_file()

    def load(self, directory, *, device, dtype):
        from diffusers import DDIMScheduler

        OPENED.append((directory, device, dtype))
        return Model(
            name="inner", backbone=OneParameter(), codec=MeanCodec(), text=LetterText(), image=None,
            scheduler=DDIMScheduler(), defaults=Defaults(height=8, width=8, fps=8.0), device=device, dtype=dtype,
        )
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install("dist", group, {"name": "module:value"}, module=source) puts a distribution on sys.path."""

    def put(distribution, group, entries, **modules):
        site = tmp_path / distribution
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
        for name, source in modules.items():
            (site / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(str(site))
        return site

    return put


def test_plugins_are_found_without_being_imported(install):
    install("one", GROUP, {"b": "mod_one:B", "a": "mod_one:A"}, mod_one="raise SystemError('imported')")
    install("two", GROUP, {"c": "mod_two:C"}, mod_two="C = 3")
    found = discover(GROUP)
    assert list(found) == ["a", "b", "c"]
    assert found["a"].value == "mod_one:A" and found["a"].dist.name == "one"
    assert load(GROUP, "c") == 3
    assert "mod_one" not in sys.modules


def test_two_plugins_of_one_name_are_an_error_that_names_both(install):
    install("one", GROUP, {"cam": "mod_one:Cam"})
    install("two", GROUP, {"cam": "mod_two:Cam"})
    with pytest.raises(UserError) as caught:
        discover(GROUP)
    assert str(caught.value) == (
        f"two plugins of {GROUP} are named 'cam': mod_one:Cam of one and mod_two:Cam of two; uninstall one of the two"
    )


def test_two_distributions_with_the_same_value_clash_too(install):
    install("one", GROUP, {"cam": "mod:Cam"})
    install("two", GROUP, {"cam": "mod:Cam"})
    with pytest.raises(UserError, match="mod:Cam of one and mod:Cam of two"):
        load(GROUP, "cam")


def test_a_distribution_that_is_found_twice_does_not_clash_with_itself(install, tmp_path, monkeypatch):
    """A source folder with its egg-info beside the installed distribution."""
    site = install("one", GROUP, {"cam": "mod:Cam"}, mod="Cam = 1")
    copy = tmp_path / "copy" / "one-1.0.dist-info"
    copy.parent.mkdir()
    copy.mkdir()
    for file in (site / "one-1.0.dist-info").iterdir():
        (copy / file.name).write_text(file.read_text())
    monkeypatch.syspath_prepend(str(copy.parent))
    assert load(GROUP, "cam") == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("raise RuntimeError('no\\n  luck')", "RuntimeError: no luck"),
        ("Other = 1", "AttributeError: module 'mod_bad' has no attribute 'Bad'"),
        ("def (", "SyntaxError: invalid syntax"),
    ],
)
def test_a_broken_plugin_is_reported_and_skipped(install, source, reason):
    install("good", GROUP, {"good": "mod_good:GOOD"}, mod_good="GOOD = 7")
    install("bad", GROUP, {"bad": "mod_bad:Bad"}, mod_bad=source)
    message = f"the plugin 'bad' (mod_bad:Bad of bad) cannot be imported: {reason}"
    with pytest.warns(UserWarning, match="the plugin 'bad'") as caught:
        loaded = load_all(GROUP)
    assert len(caught) == 1
    assert loaded.working == {"good": 7}
    assert len(loaded.problems) == 1 and loaded.problems[0].startswith(message)
    assert "\n" not in loaded.problems[0]
    assert load(GROUP, "good") == 7
    with pytest.raises(UserError) as error:
        load(GROUP, "bad")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("group", "name", "message"),
    [
        (SHORT_TERM_MEMORIES, "camm", "no short term memory 'camm': did you mean 'cam'? there are cam, xyz"),
        (LONG_TERM_MEMORIES, "q", "no long term memory 'q': there are cam, xyz"),
        (BLENDERS, "naiv", "no blender 'naiv': there are cam, xyz"),
        (BACKBONES, "xy", "no model, and no folder, 'xy': did you mean 'xyz'? there are cam, xyz"),
    ],
)
def test_an_unknown_name_is_told_what_there_is(monkeypatch, group, name, message):
    monkeypatch.setattr(
        "streaming.registry.entry_points", lambda group: [EntryPoint(name, "m:x", group) for name in ("cam", "xyz")]
    )
    with pytest.raises(UserError) as caught:
        open_model(name) if group == BACKBONES else load(group, name)
    assert str(caught.value) == message


def test_where_nothing_is_installed_it_says_how_to():
    with pytest.raises(UserError, match=f"no {GROUP.removeprefix('streaming.')[:4]}.* run 'pip install .'"):
        load(GROUP, "cam")


@pytest.fixture
def families(install, monkeypatch):
    """Two backends and nothing else in the group of backbones."""
    from importlib import metadata

    install("one", "streaming.test_backbones", {"fam-one": "fam_one:Family"}, fam_one=BACKEND.replace("{mark}", "one"))
    install("two", "streaming.test_backbones", {"fam-two": "fam_two:Family"}, fam_two=BACKEND.replace("{mark}", "two"))

    def instead(group):
        return metadata.entry_points(group="streaming.test_backbones" if group == BACKBONES else group)

    monkeypatch.setattr("streaming.registry.entry_points", instead)
    return install


def test_a_registered_name_opens_what_ships_with_the_plugin(families):
    model = open_model("fam-one", device="cpu", dtype=torch.bfloat16)
    assert model.name == "fam-one"
    assert sys.modules["fam_one"].OPENED == [(None, torch.device("cpu"), torch.bfloat16)]
    assert "fam_two" not in sys.modules


def test_a_folder_is_opened_by_the_backend_that_knows_it(families, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "two").touch()
    assert open_model(str(folder)).name == str(folder)
    assert sys.modules["fam_two"].OPENED == [(folder, torch.device("cpu"), torch.float32)]
    assert sys.modules["fam_one"].OPENED == []


def test_a_folder_that_no_backend_or_more_than_one_knows_is_refused(families, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UserError) as caught:
        open_model(str(folder))
    assert str(caught.value) == (
        f"no backend knows the model in {folder}: installed are fam-one, fam-two; "
        "is it a whole model folder in diffusers' format? If not, choose another one"
    )
    (folder / "one").touch()
    (folder / "two").touch()
    with pytest.raises(UserError) as caught:
        open_model(str(folder))
    assert str(caught.value) == f"more than one backend knows {folder}: fam-one, fam-two; uninstall all but one"


def test_a_broken_backend_does_not_stop_the_others(families, tmp_path):
    families("bad", "streaming.test_backbones", {"bad": "fam_bad:Family"}, fam_bad="import nowhere_to_be_found")
    folder = tmp_path / "model"
    folder.mkdir()
    with (
        pytest.warns(UserWarning, match="the plugin 'bad'"),
        pytest.raises(UserError, match="skipped: the plugin 'bad'"),
    ):
        open_model(str(folder))
    (folder / "one").touch()
    with pytest.warns(UserWarning, match="the plugin 'bad'"):
        assert open_model(str(folder)).name == str(folder)


ABSTRACT = "from streaming.model import Backend\nclass Family(Backend):\n    pass\n"
RAISING = "class Family:\n    def __init__(self):\n        raise OSError('no\\n  licence')\n"
UNSURE = "class Family:\n    def matches(self, directory):\n        return directory['unet']\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (ABSTRACT, "TypeError: Can't instantiate abstract class Family"),
        (RAISING, "OSError: no licence"),
        (UNSURE, "TypeError: 'PosixPath' object is not subscriptable"),
    ],
    ids=["abstract", "raising", "unsure"],
)
def test_a_backend_that_imports_but_does_not_work_does_not_stop_the_others(families, tmp_path, source, reason):
    families("bad", "streaming.test_backbones", {"bad": "fam_bad:Family"}, fam_bad=source)
    folder = tmp_path / "model"
    folder.mkdir()
    message = f"the plugin 'bad' (fam_bad:Family of bad) does not work: {reason}"
    with pytest.warns(UserWarning, match="the plugin 'bad'") as told, pytest.raises(UserError) as caught:
        open_model(str(folder))
    assert len(told) == 1 and str(told[0].message).startswith(message) and "\n" not in str(told[0].message)
    installed = f"no backend knows the model in {folder}: installed are fam-one, fam-two"
    assert str(caught.value).startswith(f"{installed} (skipped: {told[0].message}); is it a whole")
    (folder / "one").touch()
    with pytest.warns(UserWarning, match="does not work"):
        assert open_model(str(folder)).name == str(folder)


@pytest.mark.parametrize(
    ("source", "reason"),
    [(ABSTRACT, "TypeError: Can't instantiate abstract class Family"), (RAISING, "OSError: no licence")],
    ids=["abstract", "raising"],
)
def test_a_backend_that_does_not_work_is_told_by_its_name(families, source, reason):
    families("bad", "streaming.test_backbones", {"bad": "fam_bad:Family"}, fam_bad=source)
    for open_ in (open_model, open_enhancer, make_backend):
        with pytest.raises(UserError) as caught:
            open_("bad")
        assert str(caught.value).startswith(f"the plugin 'bad' (fam_bad:Family of bad) does not work: {reason}")
        assert type(caught.value.__cause__).__name__ == reason.split(":")[0]


@pytest.mark.parametrize(
    ("group", "make"),
    [
        (SHORT_TERM_MEMORIES, lambda: make_short_term("odd", None)),
        (LONG_TERM_MEMORIES, lambda: make_long_term("odd", None)),
        (BLENDERS, lambda: make_blender("odd", 6, 2)),
    ],
    ids=["short", "long", "blender"],
)
def test_a_factory_s_own_words_pass_and_anything_else_is_told_with_its_name(monkeypatch, install, group, make):
    source = (
        "from streaming.errors import UserError\nkind = UserError\ndef odd(*given):\n    raise kind('no weights')\n"
    )
    install("dist", group, {"odd": "mod_odd:odd"}, mod_odd=source)
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == "no weights"
    monkeypatch.setattr(sys.modules["mod_odd"], "kind", RuntimeError)
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == "the plugin 'odd' (mod_odd:odd of dist) does not work: RuntimeError: no weights"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_model_without_an_enhancer_says_so(families):
    with pytest.raises(UserError) as caught:
        open_enhancer("fam-one")
    assert str(caught.value) == (
        "the model 'fam-one' has no enhancer: leave --enhance out, and give the video to `streamingt2v enhance` with "
        "another model"
    )


def test_factories_get_model_and_weights(install, families, tmp_path):
    source = "def short(model, weights):\n    from tests.toys import TailMean\n    memory = TailMean()\n"
    source += "    memory.made_with = model, weights\n    return memory\n"
    source += "def long(model, weights):\n    from tests.toys import AnchorMean\n    memory = AnchorMean()\n"
    source += "    memory.made_with = model, weights\n    return memory\n"
    source += "from streaming.blend import naive as blender\n"
    install("mems", SHORT_TERM_MEMORIES, {"test-short": "mems:short"}, mems=source)
    install("lmems", LONG_TERM_MEMORIES, {"test-long": "mems:long"})
    install("blends", BLENDERS, {"test-blender": "mems:blender"})
    model, weights = open_model("fam-one"), tmp_path / "weights"
    assert make_short_term("test-short", model, weights).made_with == (model, weights)
    assert make_short_term("test-short", model).made_with == (model, None)
    assert make_long_term("test-long", model, weights).made_with == (model, weights)
    assert make_blender("test-blender", 24, 8).__dict__ == naive(24, 8).__dict__


def test_assembling_takes_what_is_not_given_from_the_model(families):
    from streaming.guidance import ClassifierFree
    from streaming.parts import assemble
    from streaming.sample import Sampler

    model = open_model("fam-one")
    parts = assemble(model, short=NoShortTerm(), long=NoLongTerm())
    assert (parts.height, parts.width, parts.fps, parts.name) == (8, 8, 8.0, "fam-one")
    assert parts.guidance == ClassifierFree(7.5) and parts.sampler == Sampler("ddim", 50, 1.0)
    assert parts.negative_prompt == "" and parts.backbone is model.backbone and parts.scheduler is model.scheduler
    other = assemble(
        model,
        short=NoShortTerm(),
        long=NoLongTerm(),
        guidance=ClassifierFree(3.0),
        sampler=Sampler("dpm++", 4),
        height=16,
        width=12,
        fps=4.0,
        negative_prompt="fog",
    )
    assert (other.height, other.width, other.fps, other.negative_prompt) == (16, 12, 4.0, "fog")
    differing = {name for name, value in parts.settings.items() if other.settings[name] != value}
    assert differing == {"size", "fps", "guidance", "sampler", "steps", "negative prompt"}
    with pytest.raises(UserError, match="a size of 8x10: width and height must be positive multiples of 4"):
        assemble(model, short=NoShortTerm(), long=NoLongTerm(), height=10)


def test_memories_are_put_where_the_model_is(families):
    from streaming.parts import assemble

    class Weighted(type(toy().short)):
        def __init__(self):
            super().__init__()
            self.layer, self.drop = torch.nn.Linear(2, 2), torch.nn.Dropout()

    memory = Weighted()
    assemble(open_model("fam-one", dtype=torch.bfloat16), short=memory, long=NoLongTerm())
    assert memory.layer.weight.dtype == torch.bfloat16 and not memory.drop.training


def test_looking_around_imports_no_big_library():
    """A misspelt name must be told at once."""
    program = (
        "import sys; from streaming.registry import discover, BACKBONES; discover(BACKBONES);"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'av') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_nothing_is_warned_of_where_all_is_well(install):
    install("good", GROUP, {"good": "mod_good:GOOD"}, mod_good="GOOD = 7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_all(GROUP).problems == ()
