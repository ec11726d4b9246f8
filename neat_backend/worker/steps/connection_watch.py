"""The project's connection in Label Studio: checking that it exists, and configuring a new one."""

from __future__ import annotations

from neat_backend import connection
from neat_backend.errors import Disconnected, LeaseLost
from neat_backend.labelstudio.client import ProjectInfo
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.records import MLBackend, Project
from neat_backend.store import projects
from neat_backend.worker.steps import reading
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.data_manager import Tabs
from neat_backend.worker.steps.followed import Followed
from neat_backend.worker.steps.shown_state import ShownState


class Connecting:
    """Checks one project's connection; nothing is published before `hold` has confirmed it."""

    def __init__(self, context: Context, followed: Followed, tabs: Tabs, state: ShownState) -> None:
        self._context, self._followed, self._tabs, self._state = context, followed, tabs, state
        self._tabs_due = False  # those of a new connection are to be made
        self._seen_calls = 0  # calls of /setup when the connection was last checked

    def hold(self, tabs: bool = True) -> tuple[Project, MLBackend, ProjectInfo]:
        """Check that Label Studio still has the project and a connection to this backend; configure a new one.

        tabs: also make the tabs of a new one, which the order does not need; else `make_tabs` has to follow.
        Returns the project as stored, its connection, and Label Studio's project. Raises Disconnected, Replaced,
        LabelStudioError; LeaseLost where the connection's extra params have changed.
        """
        context, number = self._context, self._context.project
        with context.database.read() as conn:
            project = projects.get(conn, number)
        if project is None:
            raise LeaseLost(f"project {number} is not connected any more")
        calls = self._followed.calls
        try:
            info, backend = connection.look(context.client, project, called=calls > self._seen_calls)
        except Disconnected:
            if calls == self._followed.calls:
                raise
            return self.hold(tabs)  # Label Studio calls /setup first and then makes the connection
        self._seen_calls = calls
        if backend.extra_params != project.extra_params:
            context.update(extra_params=dict(backend.extra_params))
            raise LeaseLost(f"project {number}: its connection has other extra params, it is started anew")
        if backend.key != project.connection:
            is_new = project.connection is not None or project.synced_at is None
            if is_new and context.settings.configure_project:
                reading.configure(context)
                self._followed.sampling, self._tabs_due = UNCERTAINTY, True
            context.update(connection=backend.key, created_at=info.created_at)
        self._followed.connected = True
        if tabs:
            self.make_tabs()
        return project, backend, info

    def make_tabs(self) -> None:
        """Make the tabs of a new connection: of the next tasks, and of labels to check. Raises LabelStudioError.

        After a crash before it, `DataManager` makes them.
        """
        if self._tabs_due:
            self._tabs.make(UNCERTAINTY, ())
            self._tabs_due = False

    def ensure_webhook(self, backend: MLBackend) -> None:
        """Make sure that the connection has a webhook, or show why it can't have one."""
        context = self._context
        self._state.notice(connection.ensure_webhook(context.project, backend, context.settings, context.client))
