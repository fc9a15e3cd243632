"""Runs the daemon, and ends it (`policyd.daemon.start` starts it).

Nothing listens before a ruleset has been loaded without an error, and readiness is announced only when the sockets are
open. Only the control socket may be missing after an error.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import uvloop

from policyd import __version__
from policyd.config.outline import changes
from policyd.config.problems import ConfigErrors
from policyd.control.words import Command, failure
from policyd.core.address import parse_address
from policyd.daemon import listeners, metrics
from policyd.daemon.control import ControlServer, LongText
from policyd.daemon.counters import Counters, Rates
from policyd.daemon.decision_log_file import DecisionLogFile
from policyd.daemon.memory import DaemonMemory, SharedMemoryError
from policyd.daemon.operational_log import excerpt
from policyd.daemon.reload import SIGNALS, LoadError
from policyd.daemon.server import Server
from policyd.daemon.status import ROOT_NOTICE, ReloadResult, Running, ending_rules, status
from policyd.daemon.systemd import Notifier
from policyd.dns.facts import FactFinder
from policyd.dns.lists import DnsLists
from policyd.dns.resolver import Resolver
from policyd.memory.definitions import network_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from policyd.config.in_force import LoadedFile
    from policyd.config.settings import Settings
    from policyd.control.words import ControlRequest
    from policyd.daemon.control import Commands, ControlAnswer
    from policyd.daemon.operational_log import OperationalLog
    from policyd.daemon.reload import Loader, LoadResult, MappedRuleset
    from policyd.memory.definitions import CounterDefinition

_log = logging.getLogger(__name__)

# Seconds for requests in flight to be answered after SIGTERM (docs/settings.md, "Signals").
DRAIN_SECONDS = 5.0

# Iterations of the event loop after SIGTERM, in which requests sent before it are still read. At least three are
# needed: the first attaches the socket, the second makes the connection, the third reads.
ARRIVAL_TURNS = 5

# Allocations between garbage collections (Python's default is 700). A request that waits for DNS has some fifty
# objects, and reference counting frees nearly all of them. With the default the collector would traverse them again and
# again, which takes a fifth of the CPU time of 500 waiting connections.
COLLECTOR_THRESHOLD = 20_000

# Maximum number of changes in a reload's log line; `policyd reload` prints more (outline.MAX_CHANGES).
MAX_CHANGES_LOGGED = 10

# Seconds between a failure to drop entries that have ended and the next try.
FAILED_DROP_SECONDS = 60.0

# Maximum number of keys that `policyd status --counter` prints.
HIGHEST_KEYS = 10

# Maximum number of expired or expiring rules that are named in the log at a time; a generated ruleset may have
# thousands.
MAX_EXPIRY_LINES = 20


def run(loader: Loader, operational_log: OperationalLog, environment: Mapping[str, str]) -> None:
    """Runs the daemon until SIGTERM or SIGINT.

    Raises ConfigErrors, LoadError or ListenError if it cannot start.
    """
    gc.freeze()  # the modules imported after the fork of the loader
    gc.set_threshold(COLLECTOR_THRESHOLD)
    uvloop.run(_Daemon(loader, operational_log, environment).run())


# Settings that a reload does not apply.
_ONLY_AT_START = (
    *("listen", "socket_mode", "socket_owner", "socket_group", "control", "control_group"),
    *("state", "state_file", "state_timeout", "state_credentials", "limits.state_keys"),
)

# The answer to peers that wait for a reload when the daemon ends.
_ENDING = ReloadResult(0.0, data=False, errors=("policyd is ending; nothing was reloaded",))


class _Daemon:
    """Owns every part of the running daemon."""

    def __init__(self, loader: Loader, operational_log: OperationalLog, environment: Mapping[str, str]) -> None:
        self._loader = loader
        self._operational_log = operational_log
        self._environment = environment
        self._notifier = Notifier(environment)
        self._counters = Counters()
        self._ended = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._next_drop = 0.0  # time on the monotonic clock before which no ended entries are dropped again
        # Requested reloads: whether with `--data`, and the future of the peer that waits for the result.
        self._reloads: list[tuple[bool, asyncio.Future[ReloadResult] | None]] = []
        self._waiting: set[asyncio.Future[ReloadResult]] = set()  # the futures of all peers that wait for a reload
        self._tasks: set[asyncio.Task[None]] = set()
        self._replaced: set[Resolver] = set()

    async def run(self) -> None:
        """Loads, listens, serves, drains."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_bug)
        loop.set_default_executor(ThreadPoolExecutor(initializer=_block_signals))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._want_reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked since `policyd.daemon.start`
        loaded = await self._first_load()
        if loaded is None:
            return
        await self._listen(loaded)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self._announce(loaded)
        for work in (self._watch_time(), self._watch_reloads(), self._watch_watchdog()):
            self._run_in_background(work)
        self._notifier.ready(loaded.summary)
        del loaded  # a reference here would keep the first ruleset in memory after its replacement
        await self._ended.wait()
        await self._drain()

    async def _first_load(self) -> LoadResult | None:
        """Loads the first ruleset; None if a signal ends the daemon before the load is complete."""
        loading = asyncio.create_task(self._loader.load())
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait((loading, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not loading.done():
            loading.cancel()
            return None
        loaded, self._mapped = loading.result()
        return loaded

    async def _listen(self, loaded: LoadResult) -> None:
        """Opens the resolver, the memory, the decision log and the sockets. Raises ListenError."""
        settings = self._settings = loaded.settings
        logging.getLogger().setLevel(settings.log_level.upper())
        max_connections = listeners.raise_descriptor_limit()
        if settings.limits.connections > max_connections:
            _log.warning(
                "limits.connections is %d, but descriptors suffice for %d only (LimitNOFILE=, ulimit -n)",
                settings.limits.connections,
                max_connections,
            )
        self._resolver = Resolver(settings.dns, self._counters.dns)
        self._dns_lists = DnsLists()
        self._dns_lists.use(loaded.ruleset.dns_lists, settings.dns, self._resolver.servers)
        self._memory = DaemonMemory(settings, loaded.ruleset)
        await self._memory.connect()
        self._run_in_background(self._memory.run())
        self._decision_log = DecisionLogFile(settings.decision_log.path, asyncio.get_running_loop().call_soon)
        self._server = Server(
            loaded.ruleset,
            settings,
            FactFinder(self._resolver, self._dns_lists, settings.dns.timeout),
            self._memory.memory,
            self._decision_log,
            counters=self._counters,
            max_connections=max_connections,
        )
        rates = Rates(self._counters, monotonic())
        self._running = Running(self._server, loaded, rates, self._lines_lost, self._memory.file)
        self._page = metrics.Page(self._running)
        self._page_server = await self._serve_metrics(settings)
        self._listeners, passed_control = listeners.open_listeners(settings, self._environment)
        for listener in self._listeners:
            listener.start(asyncio.get_running_loop(), self._server.accept, self._server.complain)
        self._control = ControlServer(self._commands())
        self._control_listener = passed_control or self._open_control(settings)
        if self._control_listener is not None:
            self._control_listener.start(asyncio.get_running_loop(), self._control.accept, self._server.complain)

    def _open_control(self, settings: Settings) -> listeners.Listener | None:
        """Opens the control socket; None without the setting, or after an error, which is logged: mail goes on."""
        if settings.control is None:
            return None
        try:
            return listeners.open_control(settings.control, settings.control_group)
        except listeners.ListenError as error:
            _log.error(
                "%s; serving without a control socket, which policyd status and policyd reload need: "
                "make its folder or set 'control' to another path, and restart",
                error,
            )
            return None

    def _announce(self, loaded: LoadResult) -> None:
        """Logs the start, and warns of unsafe settings."""
        _log.info("policyd %s started: %s", __version__, loaded.summary)
        for listener in self._listeners:
            _log.info("listening on %s", listener.name)
            if listener.is_reachable_from_elsewhere:
                _log.warning(
                    "%s can be reached from other hosts, and answers every client; let a firewall admit your Postfix "
                    "hosts only",
                    listener.name,
                )
        if self._control_listener is not None:
            _log.info("control socket: %s", self._control_listener.name)
        if os.geteuid() == 0:
            _log.warning(ROOT_NOTICE)
        self._announce_ruleset(loaded.warnings)

    def _announce_ruleset(self, warnings: Sequence[str]) -> None:
        """Logs the warnings about a ruleset that has just been put in force."""
        if self._server.ruleset.observe:
            _log.warning("mode: observe is at the top of the rules: every answer is DUNNO, and no mail is refused")
        for warning in warnings:
            _log.warning("%s", warning)
        self._announce_expiry()

    def _announce_expiry(self) -> None:
        """Logs the rules that have expired (a warning) or will expire soon: at the start, after a reload, and once a
        day.
        """
        self._announced = self._server.today
        ending = ending_rules(self._server)
        for rule in ending[:MAX_EXPIRY_LINES]:
            is_over = rule.expired(self._announced)
            level, tense = (logging.WARNING, "has expired") if is_over else (logging.INFO, "expires")
            _log.log(level, "rule '%s' %s on %s; remove it or set another date", rule.name, tense, rule.expires)
        if len(ending) > MAX_EXPIRY_LINES:
            _log.warning("%d more rules have expired or will soon", len(ending) - MAX_EXPIRY_LINES)

    def _announce_ages(self) -> None:
        """Logs the databases that are older than `max_age`, once a day. The warnings of a load name them, too."""
        now = time.time()
        for database in self._running.loaded.databases:
            if notice := database.age_notice(now):
                _log.warning("%s: %s", database.path, notice)

    def _hang_up(self) -> None:
        """SIGHUP: opens the decision log again at once, then reloads."""
        self._decision_log.reopen()
        self._want_reload()

    def _want_reload(self, *, data: bool = False, waiting: asyncio.Future[ReloadResult] | None = None) -> None:
        self._reloads.append((data, waiting))
        self._reload_wanted.set()

    # --- While it serves --------------------------------------------------------------------------------------------

    async def _watch_time(self) -> None:
        """Does the work that is due once a second."""
        while True:
            await asyncio.sleep(1)
            try:
                now = monotonic()
                self._server.sweep(now)
                self._decision_log.check(now)
                self._running.check(now)
                self._check_loader()
                if self._must_drop_entries():
                    self._reload_wanted.set()
                self._dns_lists.check()
                if self._server.today != self._announced:
                    self._announce_expiry()
                    self._announce_ages()
            except Exception:  # noqa: BLE001 - the exception boundary of background work
                _log.exception("a bug in policyd, please report it")

    def _check_loader(self) -> None:
        """Reports, once, that the loading process has ended."""
        if not self._running.loader_ended and (reason := self._loader.why_ended()):
            self._running.loader_ended = reason
            _log.error("%s", reason)
            self._notifier.status(reason)

    async def _watch_watchdog(self) -> None:
        """Notifies systemd's watchdog from the event loop."""
        while self._notifier.watchdog_seconds is not None:
            self._notifier.watchdog()
            await asyncio.sleep(self._notifier.watchdog_seconds)

    async def _watch_reloads(self) -> None:
        """Reloads on request, and drops entries that have ended. Any number of requests during a load cause one more
        load after it, or two if only some of them are for `reload --data`.
        """
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            wanted, self._reloads = self._reloads, []
            for data in sorted({data for data, _ in wanted}, reverse=True):
                self._notifier.reloading()
                result = await self._reload(data=data)
                self._notifier.ready(self._status_line(result))
                for is_data, waiting in wanted:
                    if is_data is data and waiting is not None and not waiting.done():
                        waiting.set_result(result)
            if self._must_drop_entries():
                await self._drop_ended_entries()

    def _must_drop_entries(self) -> bool:
        """Whether an entry of a list file in force has ended, and ended entries should be dropped now."""
        next_end = self._running.loaded.next_end
        return next_end is not None and next_end <= time.time() and self._next_drop <= monotonic()

    async def _drop_ended_entries(self) -> None:
        """Removes entries that have ended from the ruleset in force, without reading a file."""
        old = self._running.loaded
        began = monotonic()
        pause = FAILED_DROP_SECONDS
        try:
            loaded, mapped = await self._loader.load(old.texts, self._mapped)
            loaded = loaded.with_databases_of(old)
            changed = changes(old.outline, loaded.outline)
            await self._use(loaded, mapped)
        except (ConfigErrors, LoadError) as error:
            _log.error("entries that have ended cannot be dropped: %s", "; ".join(str(error).splitlines()))
        except Exception:  # noqa: BLE001 - the exception boundary of background work
            _log.exception("a bug in policyd, please report it")
        else:
            _log.info("dropped entries that have ended: %s", "; ".join(_shortened(changed)))
            pause = max(1.0, monotonic() - began)  # so dropping takes at most half of the time
        self._next_drop = monotonic() + pause

    async def _reload(self, *, data: bool) -> ReloadResult:
        """Loads, and puts the result in force unless there is an error. With `data`, uses the texts of the settings and
        rules in force, and reads only list files and databases.
        """
        old = self._running.loaded
        try:
            texts = old.texts._replace(data=None) if data else None
            loaded, mapped = await self._loader.load(texts, self._mapped, old)
            changed = changes(old.outline, loaded.outline)
            await self._use(loaded, mapped)
        except (ConfigErrors, LoadError) as error:
            self._counters.loads["failure"] += 1
            result = ReloadResult(time.time(), data, errors=tuple(str(error).splitlines()))
            for line in result.errors:
                _log.error("%s", line)
            _log.error("reload failed: ruleset %s stays in force", old.ruleset.hash)
        except Exception:  # noqa: BLE001 - the exception boundary of background work
            self._counters.bugs += 1
            self._counters.loads["failure"] += 1
            _log.exception("a bug in policyd, please report it")
            result = ReloadResult(time.time(), data, errors=("a bug in policyd, please report it (the log has it)",))
        else:
            self._counters.loads["success"] += 1
            result = ReloadResult(time.time(), data, (), loaded.summary, changed, loaded.warnings, loaded.left_alone)
            _log.info("reloaded: %s", "; ".join((loaded.summary, *_shortened(changed), *loaded.reused)))
            for path in loaded.left_alone:
                _log.info("%s has been edited since it was loaded; reload --data leaves it alone", path)
            self._announce_ruleset(loaded.warnings)
        self._running.reloaded(result)
        return result

    def _status_line(self, result: ReloadResult) -> str:
        if not result.errors:
            return result.summary
        ruleset = self._server.ruleset
        mode = " (mode: observe, every answer is DUNNO)" if ruleset.observe else ""
        return f"reload failed, ruleset {ruleset.hash}{mode} stays in force: {result.errors[0]}"

    async def _use(self, loaded: LoadResult, mapped: MappedRuleset) -> None:
        """Puts a new ruleset and new settings in force, in one step between two requests."""
        old, new = self._settings, loaded.settings
        for name in _ONLY_AT_START:
            value_of = attrgetter(name)
            if value_of(old) != value_of(new):
                _log.warning("%s has changed; that needs a restart of policyd", name)
        logging.getLogger().setLevel(new.log_level.upper())
        if new.metrics != old.metrics:
            await self._move_metrics(new)
        if new.decision_log.path != old.decision_log.path:
            self._decision_log.use(new.decision_log.path)
        old_resolver = self._resolver
        if dataclasses.replace(new.dns, trust_postfix=old.dns.trust_postfix) != old.dns:
            self._resolver = Resolver(new.dns, old_resolver.counters)
        self._dns_lists.use(loaded.ruleset.dns_lists, new.dns, self._resolver.servers)
        self._memory.prepare(loaded.ruleset)
        self._server.use(loaded.ruleset, new, FactFinder(self._resolver, self._dns_lists, new.dns.timeout))
        self._running.loaded = loaded
        self._counters.forget_rules(loaded.ruleset)
        self._running.rates.forget(monotonic())
        replaced = None
        if old_resolver is not self._resolver:
            replaced = old_resolver
            self._replaced.add(replaced)
        # Requests that wait for DNS use the old ruleset and the old resolver until they are answered.
        self._run_in_background(self._retire(old.dns.timeout, self._mapped, replaced))
        self._settings, self._mapped = new, mapped

    async def _retire(self, dns_timeout: float, mapped: MappedRuleset, replaced: Resolver | None) -> None:
        await asyncio.sleep(dns_timeout + 1)
        if replaced is not None:
            self._replaced.discard(replaced)
            await replaced.close()
        await self._memory.drop_unused(self._server.ruleset)
        await mapped.release()

    # --- The control socket -----------------------------------------------------------------------------------------

    def _commands(self) -> Commands:
        return {
            Command.ALIVE: self._tell_alive,
            Command.STATUS: self._tell_status,
            Command.RELOAD: self._reload_on_request,
            Command.FORGET: self._forget,
            Command.RULES: self._tell_rules,
            Command.COUNTED: self._tell_counted,
        }

    async def _tell_alive(self, _request: ControlRequest) -> ControlAnswer:
        return {"ok": True, "version": __version__, "pid": os.getpid()}

    async def _tell_status(self, request: ControlRequest) -> ControlAnswer:
        if request.counter:
            return await self._tell_highest(request.counter)
        return {"ok": True, **status(self._running)}

    async def _reload_on_request(self, request: ControlRequest) -> ControlAnswer:
        waiting: asyncio.Future[ReloadResult] = asyncio.get_running_loop().create_future()
        if self._ended.is_set():
            waiting.set_result(_ENDING)
        else:
            self._waiting.add(waiting)
            waiting.add_done_callback(self._waiting.discard)
            self._want_reload(data=request.data, waiting=waiting)
        result = await waiting
        if result.errors:
            return {**failure(*result.errors), "ruleset": self._server.ruleset.hash}
        return {
            "ok": True,
            "ruleset": self._server.ruleset.hash,
            "summary": result.summary,
            "changes": result.changes,
            "warnings": result.warnings,
            "left_alone": result.left_alone,
        }

    async def _tell_highest(self, name: str) -> ControlAnswer:
        counter = self._counter(name)
        if counter is None:
            return self._no_counter(name)
        try:
            highest = await self._memory.highest(counter, HIGHEST_KEYS)
        except SharedMemoryError as error:
            return failure(str(error))
        keys = [{"key": key.decode("utf-8", "replace").split("\n"), "count": count} for key, count in highest]
        return {"ok": True, "counter": name, "per": [str(part) for part in counter.per], "keys": keys}

    def _counter(self, name: str) -> CounterDefinition | None:
        return next(
            (counter.definition for counter in self._server.ruleset.counters if counter.definition.name == name), None
        )

    def _no_counter(self, name: str) -> ControlAnswer:
        names = ", ".join(counter.definition.name for counter in self._server.ruleset.counters)
        known = f"the counters are {names}" if names else "the ruleset in force has none"
        return failure(f"there is no counter {name!r:.80}; {known}")

    async def _forget_counted(self, request: ControlRequest) -> ControlAnswer:
        """Resets a key of a counter, or forgets that a network has passed greylisting, in this process and on the
        shared server.
        """
        what = request.what.encode("utf-8", "replace")
        try:
            if request.greylist:
                address = parse_address(what)
                if address is None:
                    return failure("expected an address, such as 192.0.2.25")
                network = network_of(address)
                forgotten = await self._memory.forget_network(network)
                name = f"greylisting of {excerpt(network)}"
            else:
                counter = self._counter(request.counter)
                if counter is None:
                    return self._no_counter(request.counter)
                key = counter.parse_key(what)
                forgotten = await self._memory.forget_key(counter, key)
                words = key.replace(b"\n", b" ")
                name = f"counter {counter.name} of {excerpt(words)}"
        except ValueError as error:
            return failure(str(error))
        except SharedMemoryError as error:
            return failure(f"forgotten by this daemon only: {error}; repeat this when it answers")
        _log.info("forgot %s (%s)", name, "it was remembered" if forgotten else "nothing was remembered")
        return {"ok": True, "forgotten": forgotten, "name": name}

    async def _forget(self, request: ControlRequest) -> ControlAnswer:
        if request.counter or request.greylist:
            return await self._forget_counted(request)
        what = request.what.encode("utf-8", "replace")
        count = await self._resolver.forget(what)
        listed = await self._dns_lists.forget(what)
        _log.info(
            "forgot DNS answers about %s (reverse DNS: %d clients; DNS lists: %d addresses and names)",
            excerpt(what),
            count,
            listed,
        )
        return {"ok": True, "clients": count, "listed": listed}

    async def _tell_counted(self, request: ControlRequest) -> ControlAnswer:
        counter = self._counter(request.counter)
        if counter is None:
            return self._no_counter(request.counter)
        if counter.fingerprint.hex() != request.definition:
            return failure(f"counter {counter.name} is defined differently in the ruleset in force")
        value = request.value.encode() if counter.distinct is not None else None
        try:
            return {"ok": True, "count": await self._memory.value_of(counter, request.what.encode(), value)}
        except SharedMemoryError as error:
            return failure(str(error))

    async def _tell_rules(self, _request: ControlRequest) -> ControlAnswer:
        """Answers with the rules in force and their path; `policyd fetch` and `block` check new lists with them."""
        loaded = self._running.loaded
        fields = {"ok": True, "ruleset": loaded.ruleset.hash, **_paths(loaded.files)}
        return LongText(fields, "rules", loaded.texts.rules.content)

    # --- Metrics ----------------------------------------------------------------------------------------------------

    async def _serve_metrics(self, settings: Settings) -> metrics.PageServer | None:
        """Serves the metrics, if the settings say so. Raises ListenError."""
        if settings.metrics is None:
            return None
        server = metrics.PageServer(self._page)
        try:
            await server.start(settings.metrics)
        except OSError as error:
            raise listeners.cannot_listen(settings.metrics, error) from None
        place = str(settings.metrics).removeprefix("inet:")
        _log.info("metrics are at http://%s/metrics", place)
        if server.is_reachable_from_elsewhere:
            _log.warning("metrics at %s can be read from other hosts; they name your rules", place)
        return server

    async def _move_metrics(self, settings: Settings) -> None:
        try:
            server = await self._serve_metrics(settings)
        except listeners.ListenError as error:
            _log.error("metrics: %s; the old address stays in use", error)
            return
        if self._page_server is not None:
            self._page_server.close()
        self._page_server = server

    def _lines_lost(self) -> dict[str, int]:
        return {"decision": self._decision_log.lost, "operational": self._operational_log.lost}

    # --- The end ----------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Stops accepting, answers the requests in flight, and ends."""
        self._notifier.stopping()
        for listener in self._listeners:
            listener.close()
        if self._control_listener is not None:
            self._control_listener.close()
        for task in self._tasks:
            task.cancel()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(_ENDING)
        for _ in range(ARRIVAL_TURNS):
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._server.drain()
        except TimeoutError:
            _log.warning("%d connections did not end in time", len(self._server.connections))
            self._server.abort()
        await self._control.close()
        if self._page_server is not None:
            self._page_server.close()
        await self._dns_lists.close()
        for resolver in (self._resolver, *self._replaced):
            await resolver.close()
        await self._memory.close()
        self._decision_log.close()
        _log.info("ended")
        self._notifier.close()
        loop = asyncio.get_running_loop()
        _block_signals()  # a signal between the removal of its handler and SIG_IGN would kill the process
        for number in SIGNALS:
            # The loop's end would restore the default action, and a second signal would kill the process.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def _run_in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself keeps tasks by weak references only
        task.add_done_callback(self._tasks.discard)


def _shortened(changed: Sequence[str]) -> list[str]:
    """Returns the changes that fit into a log line, and the number of the others."""
    if len(changed) <= MAX_CHANGES_LOGGED:
        return [*changed]
    return [*changed[:MAX_CHANGES_LOGGED], f"and {len(changed) - MAX_CHANGES_LOGGED:,} more changes"]


def _paths(files: Sequence[LoadedFile]) -> dict[str, str | None]:
    """Absolute paths of the rules file (`path`) and the settings file (`settings`, None without one)."""
    paths = {file.kind: str(Path(file.path).absolute()) for file in files if file.kind != "list"}
    return {"path": paths["rules"], "settings": paths.get("settings")}


def _block_signals() -> None:
    """Blocks the daemon's signals in this thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _log_bug(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The last exception boundary: logs an exception in the event loop; the daemon goes on."""
    _log.error("a bug in policyd, please report it: %s", context["message"], exc_info=context.get("exception"))
