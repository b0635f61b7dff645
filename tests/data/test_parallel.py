"""Processes that joblib replaces are nothing to tell a user; one that is killed is."""

import os
import signal
import time
import warnings

import pytest
from joblib.externals.loky import process_executor

from stages.data.parallel import run_each
from stages.errors import Interrupted

TASKS = 8


def grow(_number):
    """Each process has grown too much for joblib by its second task, which it need not wait for to weigh it."""
    process_executor._MAX_MEMORY_LEAK_SIZE, process_executor._MEMORY_LEAK_CHECK_DELAY = -(10**12), 0
    time.sleep(0.1)
    return os.getpid()


def die(number):
    if number == TASKS // 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_has_grown_is_replaced_without_a_word():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = dict(run_each(grow, [(number,) for number in range(TASKS)], jobs=2))
    assert sorted(found) == list(range(TASKS))
    assert len(set(found.values())) > 2, "none was replaced"
    assert [str(warning.message) for warning in said] == []


def test_a_killed_process_ends_the_run_with_one_sentence():
    with pytest.raises(Interrupted, match="A worker process was killed") as caught:
        list(run_each(die, [(number,) for number in range(TASKS)], jobs=2))
    assert "--jobs" in caught.value.remedy
