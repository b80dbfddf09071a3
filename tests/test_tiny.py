"What the tests share is what they think it is."
import torch

from multiexit_nb.runs import Run, list_runs


def test_a_tiny_run_is_trained_once_and_belongs_to_its_test(tiny_run, finished_run):
    assert finished_run.finished and list_runs().run.tolist() == [finished_run.id]
    again = tiny_run()
    assert again.path == finished_run.path
    assert Run.load(again.id).path == again.path
    (again.path/"mine.txt").write_text("only of this test")


def test_the_next_test_gets_a_copy_of_its_own(finished_run):
    assert finished_run.finished and not (finished_run.path/"mine.txt").exists()


def test_what_one_test_does_to_a_run_no_other_sees(tiny_run):
    run = tiny_run()
    assert run.finished
    other = tiny_run(seed=1)
    a, b = run.model().state_dict(), other.model().state_dict()
    assert a.keys() == b.keys() and not all(torch.equal(a[k], b[k]) for k in a)


def test_a_student_of_a_tiny_run(tiny_run):
    teacher = tiny_run(method="branchynet", exits="none")
    student = tiny_run(method="kd", exits="none", method_args={"teacher": teacher.id})
    assert student.finished and student.about["teacher"] == teacher.id
