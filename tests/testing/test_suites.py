"""The conformance suites: a sound plugin passes, and a broken promise fails its test and is named."""

from __future__ import annotations

import importlib
import inspect

import pytest

import layertap.testing
from layertap.testing import engines
from tests import broken_plugins as broken

SUITES = {name: getattr(layertap.testing, name) for name in layertap.testing.__all__}


def check(suite, cls, test, params, request):
    """One test of a suite on a plugin, as an author's subclass would run it."""

    class Tested(SUITES[suite]):
        def plugin(self):
            return cls.of(**params)

    method = getattr(Tested(), f"test_{test}")
    method(**{name: request.getfixturevalue(name) for name in inspect.signature(method).parameters})


def promises_of(suite):
    return [name.removeprefix("test_") for name in dir(SUITES[suite]) if name.startswith("test_")]


SOUND = {
    "SourceSuite": broken.Sound,
    "PreprocessorSuite": broken.Square,
    "ReducerSuite": broken.Mean,
    "SinkSuite": broken.RollsBack,
    "FileSinkSuite": broken.Raw,
    "ModelProviderSuite": broken.Net,
    "ObserverSuite": broken.Quiet,
    "EngineSuite": broken.Here,
}


@pytest.mark.parametrize(("suite", "test"), [(suite, test) for suite in SOUND for test in promises_of(suite)])
def test_sound_plugin_passes(suite, test, request):
    params = {"path": "anywhere"} if suite == "FileSinkSuite" else {}
    check(suite, SOUND[suite], test, params, request)


BROKEN = [
    ("SourceSuite", broken.Mean, "is_of_its_kind", "Mean is not a subclass of Source"),
    ("SourceSuite", broken.Undescribed, "parameters_are_described_and_no_others_taken", "'path' has no description"),
    ("SourceSuite", broken.Lenient, "parameters_are_described_and_no_others_taken", "unknown parameters are acc"),
    ("SourceSuite", broken.Shuffled, "records_are_the_same_every_time", "a second call of records.. gives diff"),
    ("SourceSuite", broken.Spent, "records_are_the_same_every_time", "different records .4, then 0."),
    ("SourceSuite", broken.OfTheClock, "records_are_the_same_every_time", "different records .record 0"),
    ("SourceSuite", broken.Twice, "records_have_ids_and_metadata_that_make_a_table", "gives the id '0.png' twice"),
    ("SourceSuite", broken.NoText, "records_have_ids_and_metadata_that_make_a_table", "not UTF-8 text"),
    (
        "SourceSuite",
        broken.Uneven,
        "records_have_ids_and_metadata_that_make_a_table",
        "the metadata .'number'., others",
    ),
    ("SourceSuite", broken.NamesRow, "records_have_ids_and_metadata_that_make_a_table", "names metadata 'row'"),
    ("SourceSuite", broken.Eager, "records_are_cheap", "'0.png' contains its bytes"),
    ("SourceSuite", broken.Opens, "records_are_cheap", "the file of 'a.png' is opened to list it"),
    ("SourceSuite", broken.Decodes, "records_are_cheap", "records.. opens an image"),
    ("SourceSuite", broken.OneCursor, "images_can_be_read_on_any_thread", "do not share an open file or cursor"),
    ("SourceSuite", broken.NothingThere, "images_can_be_read_on_any_thread", "no image can be read"),
    ("SourceSuite", broken.NoImages, "run_accounts_for_every_record", "cannot use any of its images .*not_image"),
    ("SourceSuite", broken.Shuffled, "run_accounts_for_every_record", "account for its records in order"),
    ("PreprocessorSuite", broken.OwnSize, "one_shape_and_dtype_for_every_image", "64 x 48 1 becomes .3, 48, 64."),
    ("PreprocessorSuite", broken.Fussy, "ordinary_images_are_taken", "an ordinary image of the mode L is refused"),
    ("PreprocessorSuite", broken.Thumbnails, "image_is_left_as_it_is", "changes the 1 image"),
    ("PreprocessorSuite", broken.OneBuffer, "any_thread_prepares_the_same", "store nothing about an image on self"),
    ("PreprocessorSuite", broken.OverTheBatch, "batch_is_finished_as_its_single_images", "is not bit for bit"),
    ("PreprocessorSuite", broken.OneRow, "batch_is_finished_as_its_single_images", "for 3 images"),
    ("ReducerSuite", broken.NeedsMaps, "refuses_only_with_a_layertap_error", "axes NC raise IndexError"),
    ("ReducerSuite", broken.RefusesAll, "refuses_only_with_a_layertap_error", "none of the axes .* is supported"),
    ("ReducerSuite", broken.LosesTheBatch, "axis_0_stays_the_batch", r"5 images with the axes NC become \(1, 24\)"),
    ("ReducerSuite", broken.InPlace, "activation_is_left_as_it_is", "the activation is changed"),
    ("ReducerSuite", broken.Centred, "batch_is_reduced_as_its_rows", "different values from the 5 together"),
    ("ReducerSuite", broken.Drawn, "two_of_them_reduce_alike", "two instances"),
    ("SinkSuite", broken.Raw, "is_not_a_file_sink", "test it with FileSinkSuite"),
    ("SinkSuite", broken.Appends, "same_shard_may_come_again", "when a shard is repeated.* 9 rows are stored, but 5"),
    ("SinkSuite", broken.Loses, "run_hands_over_every_row", "after a run 6 rows are stored, but 8"),
    ("SinkSuite", broken.Narrow, "run_hands_over_every_row", "after a run the values of 'FLAT' are not bit"),
    ("SinkSuite", broken.Narrow, "shard_may_be_empty", "when every image of a shard has failed, the values of"),
    ("SinkSuite", broken.OnlyCloses, "run_may_fail_before_its_first_shard", "abort.. raises AttributeError"),
    ("SinkSuite", broken.OnlyCloses, "run_that_fails_says_why", "afterwards the sink OnlyCloses raised AttributeError"),
    ("SinkSuite", broken.KeepsHalf, "rows_of_a_failed_run_are_not_stored_twice", "after one that has failed, 9 rows"),
    ("FileSinkSuite", broken.Halved, "part_gives_back_what_was_saved", "does not give back the float32 values"),
    ("FileSinkSuite", broken.OwnNames, "part_gives_back_what_was_saved", "does not give back .* name files by self.st"),
    ("FileSinkSuite", broken.Whole, "rows_can_be_read_singly_and_in_slices", "has no shape"),
    ("FileSinkSuite", broken.NoEmpty, "part_without_rows", "a part without rows .* FileNotFoundError"),
    ("FileSinkSuite", broken.NoEmpty, "parts_that_are_all_empty_merge", None),
    ("FileSinkSuite", broken.OutOfOrder, "parts_merge_to_all_rows_in_order", "the merged output does not give back"),
    ("FileSinkSuite", broken.MovesParts, "parts_merge_to_all_rows_in_order", "merge.. changes the parts"),
    ("FileSinkSuite", broken.WritesIndex, "parts_merge_to_all_rows_in_order", "merge.. writes 'index.csv'"),
    (
        "FileSinkSuite",
        broken.Dated,
        "same_shard_gives_the_same_files_again",
        "saving the same shard again gives different",
    ),
    ("FileSinkSuite", broken.Stray, "writes_into_its_folder_and_nowhere_else", "leaves .'out'. outside the given"),
    ("FileSinkSuite", broken.Links, "writes_into_its_folder_and_nowhere_else", "not a regular file"),
    (
        "FileSinkSuite",
        broken.Remembers,
        "killed_and_resumed_is_as_never_stopped",
        "a killed and resumed run does not finish.*at least",
    ),
    ("FileSinkSuite", broken.Halved, "killed_and_resumed_is_as_never_stopped", "of an uninterrupted run"),
    ("ModelProviderSuite", broken.Bare, "loads_a_model_on_the_cpu", "gives a Sequential"),
    (
        "ModelProviderSuite",
        broken.Unseeded,
        "weights_are_the_same_every_time",
        "two loads differ in ..1.bias', '1.weight",
    ),
    ("ModelProviderSuite", broken.Seeds, "random_state_is_left_alone", "random state of the whole process"),
    ("ModelProviderSuite", broken.Noisy, "forward_is_the_same_every_time", "two forward passes in eval mode"),
    ("ModelProviderSuite", broken.Unwritable, "facts_survive_json", "PosixPath is not JSON serializable"),
    ("ModelProviderSuite", broken.ShortDigest, "facts_survive_json", "weights_sha256 is 'd1b0ea91'"),
    ("ObserverSuite", broken.Misspelt, "its_methods_are_events", "'run_finnished', which is not an event"),
    ("ObserverSuite", broken.Raises, "run_with_it_is_the_run_without_it", "Raises raised OSError: no such socket"),
    ("ObserverSuite", broken.NeedsAReport, "run_that_ends_in_an_error_is_watched_to_its_end", "AttributeError"),
    ("ObserverSuite", broken.NeedsAStart, "end_may_come_without_a_start", "after run_finished alone"),
    ("EngineSuite", broken.AnyThreads, "number_of_threads_is_fixed", "threads.. gives 1, then 2"),
    ("EngineSuite", broken.LeavesALog, "run_with_it_is_the_run_without_it", "leaves .'engine.log'. in the output"),
    ("EngineSuite", broken.NeverTwice, "shard_whose_receipt_is_lost_is_computed_again", "shard 2 is missing"),
    ("EngineSuite", broken.HidesTheCause, "worker_error_is_one_line", "ends the run with 'a worker has failed'"),
    ("EngineSuite", broken.LeavesAProcess, "workers_end_with_the_run", "still running .* after their run"),
    ("ObserverSuite", broken.Prints, "stdout_is_left_alone", "prints '2.* to stdout"),
]


@pytest.mark.parametrize(("suite", "cls", "test", "said"), BROKEN, ids=[f"{c[1].__name__}-{c[2]}" for c in BROKEN])
def test_broken_promise_is_found_and_named(suite, cls, test, said, request, tmp_path, monkeypatch):
    params = {"path": "anywhere"} if issubclass(cls, layertap.FileSink) else {}
    if cls is broken.Opens:
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG")
        params = {"path": str(tmp_path / "images")}
    monkeypatch.setattr(engines, "_GRACE", 0.5)
    with pytest.raises((AssertionError, FileNotFoundError) if said is None else AssertionError, match=said) as caught:
        check(suite, cls, test, params, request)
    if said is not None:
        assert str(caught.value).startswith("broken promise: ")
        assert "What to do: " in str(caught.value)
    for process in broken.LeavesAProcess.left:
        process.kill()
        process.wait()


def test_every_promise_of_a_kind_has_a_plugin_that_breaks_it():
    own = {(suite, test) for suite in SUITES for test in promises_of(suite)}
    general = set(promises_of("SourceSuite")) & set(promises_of("ReducerSuite"))
    held = {(suite, test) for suite, _, test, _ in BROKEN}
    assert {(suite, test) for suite, test in own - held if test not in general} == set()


def test_module_that_imports_heavy_packages_is_named(tmp_path, monkeypatch, request):
    (tmp_path / "heavy_plugin.py").write_text(
        "import numpy\nimport layertap\n\nclass Heavy(layertap.Source):\n    def records(self): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cls = importlib.import_module("heavy_plugin").Heavy
    with pytest.raises(AssertionError, match="importing heavy_plugin imports numpy, and so does every `layertap plug"):
        check("SourceSuite", cls, "module_imports_nothing_heavy", {}, request)


def test_suite_without_a_plugin_says_what_to_write():
    with pytest.raises(NotImplementedError, match="give the plugin to test, as in `def plugin"):
        layertap.testing.SourceSuite().test_is_of_its_kind()


def test_format_whose_files_differ_may_say_so(tmp_path):
    class Tested(layertap.testing.FileSinkSuite):
        deterministic = False

        def plugin(self):
            return broken.Dated.of(path="anywhere")

    Tested().test_same_shard_gives_the_same_files_again(tmp_path)


def test_file_sink_inside_a_function_cannot_be_killed_and_is_reported(tmp_path):
    class Local(broken.Raw):
        pass

    class Tested(layertap.testing.FileSinkSuite):
        def plugin(self):
            return Local.of(path="anywhere")

    with pytest.raises(
        AssertionError, match="Local is defined inside a function; move it to the top level of its module"
    ):
        Tested().test_killed_and_resumed_is_as_never_stopped(tmp_path)
