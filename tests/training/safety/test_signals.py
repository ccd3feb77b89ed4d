"""The desk that takes a program's signals: whom it tells, and what forked processes do."""

import os
import signal
import textwrap
import threading
import time
import weakref

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
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
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
