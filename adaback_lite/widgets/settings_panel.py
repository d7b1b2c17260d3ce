"""Controls for the settings, made from config.py."""

import html
from collections.abc import Callable
from typing import Any

import ipywidgets as w
from IPython.display import HTML

from ..config import GROUPS, LIVE, Config, config_from_yaml, dump_config, flat, load_config, make_config, override, setting_names
from ..errors import UserError
from .draft import Draft
from .export import differing, download_link, papermill_command, train_command, write_yaml
from .kinds import as_text
from .panel import Panel
from .rows import SettingRow, paragraph

TITLES = {"grpo": "GRPO"}  # others: their own name with a capital
NOT_SHOWN = ("version",)  # of the file's format; nobody chooses it


def controls(
    config: Config | dict | None = None,
    groups: tuple[str, ...] = ("curriculum", "grpo", "policy", "task", "trainer"),
    notebook: str = "notebooks/06_alpha.ipynb",
    headless: bool | None = None,
) -> "Controls":
    """Sliders, choices and boxes for the settings. `.config` is what they stand at; give it to `live` or `train`.

    Args:
        config: where to begin; a Config, a dict of settings, or None for the defaults.
        groups: the groups of settings that are shown, in order; those of config.LIVE stand first, then method, seed and out.
        notebook: the notebook that the papermill command runs.
        headless: show a table of what differs from the defaults in place of widgets; None finds out whether there is a front end.

    Raises UserError for an unknown group, and for a config that is not valid.
    """
    return Controls(config, groups, notebook, headless)


class Controls(Panel):
    """See `controls`. `rows` has each setting's row by dotted name, `errors` the sentences that stand beside controls now."""

    def __init__(self, config=None, groups=("curriculum", "grpo", "policy", "task", "trainer"), notebook="notebooks/06_alpha.ipynb", headless=None):
        super().__init__(headless)
        for group in groups:
            if group not in GROUPS:
                raise UserError(f"There is no group of settings '{group}'; there are: {', '.join(GROUPS)}.")
        self._draft = Draft(config if isinstance(config, Config) else make_config(config), make_config, flat)
        self._callbacks: list[Callable[[Config], None]] = []
        self._notebook = notebook
        self.rows: dict[str, SettingRow] = {}
        if not self.headless:
            self.box = self._build(groups)
            self._tell()

    @property
    def config(self) -> Config:
        """The last valid settings."""
        return self._draft.valid

    @property
    def errors(self) -> dict[str, str]:
        return dict(self._draft.errors)

    def observe(self, callback: Callable[[Config], None]) -> None:
        """Call `callback` with the settings each time they change, and are valid."""
        self._callbacks.append(callback)

    def change(self, settings: dict[str, Any]) -> None:
        """Enter settings by dotted name, as a person would. What is not valid waits, with its sentence in `errors`; an unknown name raises UserError."""
        for name in settings:
            if name not in setting_names():
                override(self.config, {name: settings[name]})  # says so
        self._after(self._draft.put(settings), entered=tuple(settings))

    def use(self, config: Config) -> None:
        """Show another configuration in place of this one."""
        self._draft.replace(config)
        self._after(True, entered=())

    def static(self) -> list:
        rows = [(name, as_text(value), field_of(name).description) for name, value in differing(self.config).items()]
        if not rows:
            return [HTML("<p>All settings are at their defaults.</p>")]
        return [table(("setting", "value", "what it is"), rows, "Settings that differ from the defaults")]

    # --- inside

    def _after(self, changed: bool, entered: tuple[str, ...]) -> None:
        """Bring the rows and the texts in line with the draft, and tell who observes."""
        values, errors = self._draft.values, self._draft.errors
        for name, row in self.rows.items():
            if name in errors:
                row.say(errors[name])
            elif changed or row.error or name in entered:
                row.show(values[name])
        if changed:
            if not self.headless:
                self._tell()
                self.keep()
            for callback in self._callbacks:
                self.guarded(callback, clears=False)(self.config)

    def _build(self, groups) -> w.Widget:
        def row(name: str) -> w.Widget:
            self.rows[name] = SettingRow(name, field_of(name), flat(self.config)[name], self._entered)
            return self.rows[name].widget

        def of(group: str) -> list[str]:
            return [n for n in setting_names() if n.rpartition(".")[0] == group and n not in LIVE and n not in NOT_SHOWN]

        first = w.VBox([row(name) for name in LIVE if name.partition(".")[0] in groups])
        run = w.VBox([row(name) for name in of("")])
        boxes = [w.VBox([w.HTML(paragraph(html.escape((GROUPS[g].__doc__ or "").strip()))), *map(row, of(g))]) for g in groups]
        folded = w.Accordion([*boxes, self._build_export()], titles=[*(TITLES.get(g, g.capitalize()) for g in groups), "Export and import"], selected_index=None)
        return w.VBox([self.message, first, run, folded])

    def _build_export(self) -> w.Widget:
        wide, button = w.Layout(width="95%"), w.Layout(width="auto")
        self.yaml = w.Textarea(description="YAML", layout=w.Layout(width="95%", height="220px"), style={"description_width": "60px"})
        self.read_yaml = w.Button(description="Use this YAML", tooltip="Take the settings from the text above", layout=button)
        self.path = w.Text(description="File", value="config.yaml", style={"description_width": "60px"}, layout=w.Layout(width="60%"))
        self.write_file, self.read_file = (w.Button(description=d, layout=button) for d in ("Write the file", "Read the file"))
        self.upload = w.FileUpload(accept=".yaml,.yml", multiple=False, description="Upload a YAML file", layout=button)
        self.link, self.commands, self.notice = w.HTML(), w.HTML(layout=wide), w.HTML()
        self.read_yaml.on_click(self.guarded(lambda _: self._use_text(self.yaml.value, "The text")))
        self.write_file.on_click(self.guarded(lambda _: self._notice(f"Written to {write_yaml(self.config, self.path.value)}.")))
        self.read_file.on_click(self.guarded(lambda _: self._use(load_config(self.path.value), self.path.value)))
        self.upload.observe(self.guarded(self._uploaded), "value")
        return w.VBox([self.yaml, w.HBox([self.read_yaml]), w.HBox([self.path, self.write_file, self.read_file]), w.HBox([self.upload, self.link]), self.notice, self.commands])

    def _uploaded(self, change) -> None:
        for file in change["new"]:
            try:
                text = bytes(file["content"]).decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{file['name']} cannot be read as text ({error}); choose a YAML file.") from None
            self._use_text(text, file["name"])

    def _use_text(self, text: str, where: str) -> None:
        self._use(config_from_yaml(text, where), where)

    def _use(self, config: Config, where: str) -> None:
        self.use(config)
        self._notice(f"{where} was read.")

    def _notice(self, text: str) -> None:
        self.notice.value = paragraph(html.escape(text))

    def _entered(self, name: str, value: Any) -> None:
        self.guarded(self.change)({name: value})

    def _tell(self) -> None:
        """The texts that others copy, anew."""
        self.yaml.value, self.link.value = dump_config(self.config), download_link(self.config)
        self.notice.value = ""
        try:
            notebook = papermill_command(self.config, self._notebook)
        except UserError as error:
            notebook = str(error)
        pre = '<pre style="white-space:pre-wrap;user-select:all;background:#f5f5f5;padding:6px;color:#222">'
        self.commands.value = "".join(
            f"{paragraph(title)}{pre}{html.escape(command)}</pre>"
            for title, command in (
                ("The same run from a shell:", train_command(self.config)),
                ("The notebook with these settings:", notebook),
            )
        )


def field_of(name: str):
    return setting_names()[name]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], caption: str = "") -> HTML:
    """A plain HTML table; every cell is escaped."""

    def line(cells, tag: str) -> str:
        return "<tr>" + "".join(f'<{tag} style="text-align:left">{html.escape(str(c))}</{tag}>' for c in cells) + "</tr>"

    about = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return HTML(f"<table>{about}<thead>{line(head, 'th')}</thead><tbody>{''.join(line(r, 'td') for r in rows)}</tbody></table>")
