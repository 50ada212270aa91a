"""Handlers, alarms, timers, masks, waiting for a signal, and one that ends the program."""

import os, signal, threading, time

seen = []
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(signal.Signals(number).name))
os.kill(os.getpid(), signal.SIGUSR1)
print(seen)
signal.signal(signal.SIGALRM, lambda *_: seen.append("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(0.3)
print(seen)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.kill(os.getpid(), signal.SIGUSR2)
print(signal.sigpending() == {signal.SIGUSR2}, signal.sigwait({signal.SIGUSR2}).name)
threading.Timer(0.05, signal.raise_signal, [signal.SIGUSR1]).start()
print(signal.sigtimedwait({signal.SIGHUP}, 0.2), seen)
try:
    signal.raise_signal(signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    print("interrupted")
print(signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, signal.strsignal(11))
signal.signal(signal.SIGTERM, signal.SIG_DFL)
print("ending", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
