from nalar.pipeline.idle_experts import IdleExperts


def test_an_expert_is_named_once_at_the_report_that_completes_a_row():
    alarm = IdleExperts(in_a_row=3)
    heard = [alarm.see([(1, 5)]) for _ in range(5)]
    assert [bool(text) for text in heard] == [False, False, True, False, False]
    assert "5 of mixture layer 1" in heard[2] and "3 reports" in heard[2]


def test_a_report_with_a_token_begins_the_count_anew():
    alarm = IdleExperts(in_a_row=2)
    heard = [alarm.see(idle) for idle in ([(0, 1)], [], [(0, 1)], [(0, 1)])]
    assert [bool(text) for text in heard] == [False, False, False, True]


def test_experts_that_take_turns_being_idle_are_no_alarm():
    alarm = IdleExperts(in_a_row=2)
    assert [alarm.see([(0, report % 2)]) for report in range(10)] == [None] * 10


def test_many_are_counted_and_not_all_named():
    alarm = IdleExperts(in_a_row=1)
    assert "and 6 more" in alarm.see([(0, expert) for expert in range(10)])


def test_an_expert_that_comes_and_goes_is_named_once():
    alarm = IdleExperts(in_a_row=2)
    heard = [alarm.see([(0, 1)] if report % 4 else []) for report in range(20)]
    assert sum(text is not None for text in heard) == 1


def test_experts_that_fall_idle_one_after_another_are_named_together():
    """Expert e is idle from report e on: the first is told alone, those that follow it two by two."""
    alarm = IdleExperts(in_a_row=2)
    heard = [alarm.see([(0, expert) for expert in range(report + 1)]) for report in range(8)]
    named = [text.partition(": ")[2].partition(" of mix")[0] if text else None for text in heard]
    assert named == [None, "0", None, "1", None, "3", None, "5"]
    assert "2 of mixture layer 0" in heard[3]
