from nalar.tasks.calendar import WEEKDAYS, Calendar
from nalar.tasks.problem import Problem


def test_a_weekday_is_read_in_plain_letters_alone():
    task = Calendar()
    for name in WEEKDAYS:
        problem = Problem("calendar", "k", "?", {"question": "weekday", "answer": name})
        assert task.score(problem, name.lower()).correct
        assert not task.score(problem, "ſ" + name[1:]).correct
        assert not task.score(problem, name.replace("d", "\u0501")).well_formed
