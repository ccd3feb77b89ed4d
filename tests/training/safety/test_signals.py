"""The desk that takes a program's signals: whom it tells, and what forked processes do."""

import os
import signal
import textwrap
import threading
import time
import weakref

import pytest
from helpers.processes import Program, run

from gdtrain.training.safety.signals import SAVING, STOPPING, SignalDesk


def wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def handlers() -> list:
    return [signal.getsignal(signum) for signum in (*STOPPING, *SAVING)]


def test_the_first_stopping_signal_is_told_and_wishes_to_save_as_often_as_they_come():
    before = handlers()
    desk, told = SignalDesk(), []
    try:
        os.kill(os.getpid(), signal.SIGUSR1)  # before anybody can save
        wait_for(lambda: desk._wants_save)
        desk.watch(told.append, lambda: told.append("save"))
        assert told == ["save"]
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda: len(told) == 2)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: len(told) == 3)
    finally:
        desk.close()
    assert told == ["save", "save", signal.SIGTERM]
    assert desk.stopped_by == signal.SIGTERM
    assert handlers() == before
    assert "gdtrain-signals" not in [thread.name for thread in threading.enumerate()]


def test_outside_the_main_thread_there_is_nothing_to_take():
    before = handlers()

    def use() -> None:
        desk = SignalDesk()
        desk.watch(print, print)
        desk.close()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert handlers() == before


def run_script(code: str) -> Program:
    return run("-c", textwrap.dedent(code))


def test_before_training_a_signal_ends_the_program_in_order():
    done = run_script(
        """
        import os, signal, time
        from gdtrain.training.safety.signals import SignalDesk
        desk = SignalDesk()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            print("in order")
        """
    )
    assert (done.returncode, done.out, done.err) == (143, "in order\n", "")


def test_a_signal_of_a_forked_process_is_not_taken_for_the_programs_own():
    """Ctrl-C on a terminal goes to the workers of a data loader too."""
    done = run_script(
        """
        import os, signal, time
        from gdtrain.training.safety.signals import SignalDesk
        desk, told = SignalDesk(), []
        desk.watch(told.append, lambda: told.append("save"))
        reader, writer = os.pipe()
        worker = os.fork()
        if not worker:
            os.write(writer, b"x")
            time.sleep(600)
            os._exit(0)
        os.read(reader, 1)  # until it is there
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGUSR1)
        time.sleep(0.2)
        print(told, os.waitpid(worker, os.WNOHANG))
        os.kill(os.getpid(), signal.SIGINT)
        while not told:
            time.sleep(0.001)
        print(told)
        os.kill(worker, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
        desk.close()
        """
    )
    assert done.out.splitlines() == ["[] (0, 0)", "[2]", "-15"], done.err


def test_a_closed_desk_keeps_nobody_alive():
    class Told:
        def stop(self, signum: int) -> None: ...

        def save(self) -> None: ...

    told, desk = Told(), SignalDesk()
    alive = weakref.ref(told)
    desk.watch(told.stop, told.save)
    desk.close()
    del told
    assert alive() is None


def test_a_signal_before_the_desk_is_there_waits_for_it():
    done = run_script(
        """
        import os, signal, time
        from gdtrain.training.safety.signals import SignalDesk, hold

        hold()
        os.kill(os.getpid(), signal.SIGUSR1)  # would end the process
        told = []
        desk = SignalDesk()
        desk.watch(told.append, lambda: told.append("save"))
        while not told:
            time.sleep(0.001)
        print(told)
        """
    )
    assert (done.returncode, done.out, done.err) == (0, "['save']\n", "")


EARLY = """
    import gc, os, signal, sys, time
    from gdtrain.training.safety.signals import SignalDesk, act
    desk = SignalDesk()

    def send(*_):
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.{name})
            for _ in range(1000):
                pass

    class Last:
        def __del__(self):
            send()

    sent = []
    {swallow}
    try:
        {after}
        print("went on")
    finally:
        desk.close()
"""
COLLECTED = "gc.callbacks.append(send); gc.collect()"
DELETED = "last = Last(); del last"
CAUGHT = """
    try:
        send()
    except BaseException:
        pass
"""
SLEEP = "time.sleep(60)"


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
@pytest.mark.parametrize(
    ("swallow", "after"),
    [(COLLECTED, SLEEP), (DELETED, SLEEP), (CAUGHT, "act()"), (DELETED, "act()")],
    ids=["collected", "deleted", "caught", "deleted, asked"],
)
def test_an_early_signal_ends_the_program_whoever_swallows_it(name, swallow, after):
    """By itself where Python ignores exceptions, at the next look where somebody catches all."""
    code = textwrap.dedent(EARLY).format(name=name, swallow=textwrap.dedent(swallow), after=after)
    done = run("-c", code)
    assert (done.returncode, done.out) == (128 + getattr(signal, name), ""), done.err
    assert "Exception ignored" not in done.err


def test_a_swallowed_signal_ends_the_program_before_training_begins():
    code = textwrap.dedent(EARLY).format(
        name="SIGTERM", swallow=textwrap.dedent(CAUGHT), after="desk.watch(print, print)"
    )
    assert run("-c", code).returncode == 143


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT"])
def test_a_signal_that_is_ignored_from_the_start_stays_so(name):
    """As under nohup: the run goes on when the connection drops."""
    done = run_script(
        f"""
        import os, signal
        signal.signal(signal.{name}, signal.SIG_IGN)
        from gdtrain.training.safety.signals import SignalDesk
        desk, told = SignalDesk(), []
        desk.watch(told.append, print)
        os.kill(os.getpid(), signal.{name})
        os.kill(os.getpid(), signal.SIGTERM)
        while not told:
            pass
        desk.close()
        print(told == [signal.SIGTERM], signal.getsignal(signal.{name}) is signal.SIG_IGN)
        """
    )
    assert done.out == "True True\n", done.err


def test_twenty_signals_at_once_end_the_program_with_the_code_of_one():
    done = run_script(
        """
        import os, signal, time
        from gdtrain.training.safety.signals import SignalDesk
        desk = SignalDesk()
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        """
    )
    assert done.returncode == 143
