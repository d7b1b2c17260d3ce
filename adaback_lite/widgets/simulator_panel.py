"""Curricula against the simulated learner, answering while a slider is moved."""

import threading

import ipywidgets as w

from .. import simulation_charts
from ..config import LIVE, METHODS, Config, flat, make_config, override, setting_names
from ..curricula import make_curriculum
from ..errors import UserError
from ..simulate import LearnerSettings, Simulation, in_numbers, make_learner, simulate
from .draft import Draft
from .panel import Panel
from .rows import LABEL, SettingRow, paragraph

SIMULATED = tuple(method for method in METHODS if not method.startswith("sft"))
MOVED = (*(name for name in LIVE if name.startswith("curriculum.")), "curriculum.recovery", "curriculum.ema_init")
# Charts to choose, with what a curriculum must keep to be in them.
DRAWN = {
    "Accuracy and revealed share": (simulation_charts.overview, "rho"),
    "First intervals": (simulation_charts.cold_start, "first_low"),
    "The ratchet": (simulation_charts.ratchet, "high"),
}
REST = 0.7  # seconds without a change after which the picture for the saved notebook is made


def simulator(settings=None, methods=("adaback", "r3"), learner=None, seed: int = 0, headless: bool | None = None) -> "SimulatorPanel":
    """Sliders for a curriculum and for a simulated learner, and a chart that follows them.

    Args:
        settings: the curricula's settings to begin with; a Config, a dict of dotted names, or None for the defaults.
        methods: the curricula that are drawn; any but the sft ones.
        learner: a LearnerSettings, a dict of its settings, or None for the defaults.
        seed: seed of the curricula and of the learner's luck.
        headless: a static chart and table in place of widgets; None finds out whether there is a front end.

    Raises UserError for an unknown method, and for settings that are not valid.
    """
    return SimulatorPanel(settings, methods, learner, seed, headless)


class SimulatorPanel(Panel):
    """See `simulator`. `simulations` has the result of each method; `rows` each setting's row, those of the learner as learner.NAME."""

    places = 2

    def __init__(self, settings=None, methods=("adaback", "r3"), learner=None, seed=0, headless=None):
        super().__init__(headless)
        methods = (methods,) if isinstance(methods, str) else tuple(methods)
        for method in methods:
            if method not in SIMULATED:
                raise UserError(f"methods names '{method}', but what can be simulated is: {', '.join(SIMULATED)}.")
        config = settings if isinstance(settings, Config) else make_config(settings)
        self._config = Draft(override(config, {"seed": seed}), make_config, flat)
        self._learner = Draft(learner if isinstance(learner, LearnerSettings) else make_learner(learner), make_learner, dict)
        self.methods = methods
        self.simulations: dict[str, Simulation] = {}
        self._keys: dict[str, tuple] = {}  # what each of them was made from
        self.rows: dict[str, SettingRow] = {}
        self._later: threading.Timer | None = None
        self._simulate()
        if not self.headless:
            self.box = self._build()

    @property
    def config(self) -> Config:
        """The last valid settings; the curriculum's and the seed count."""
        return self._config.valid

    @property
    def learner(self) -> LearnerSettings:
        return self._learner.valid

    def static(self) -> list:
        if not self.simulations:
            return []
        return [self._chart(), in_numbers({method: [s] for method, s in self.simulations.items()}).set_index("curriculum").round(3)]

    def close(self) -> None:
        if self._later:
            self._later.cancel()
        super().close()

    # --- inside

    def _chart(self):
        draw, needs = DRAWN[next(iter(DRAWN)) if self.headless else self.drawn.value]
        fit = [s for s in self.simulations.values() if getattr(s, needs) is not None]
        if not fit:
            raise UserError(f"None of {', '.join(self.simulations)} keeps intervals, so this chart has nothing to draw; choose adaback as well, or another chart.")
        return draw(fit)

    def _simulate(self) -> None:
        """Only what a change can have changed: most settings belong to one method."""
        seed, settings = self.config.seed, self.config.curriculum
        before, self._keys = self._keys, {}
        simulations = {}
        for method in self.methods:
            start = make_curriculum(Config(method=method).curriculum_name, settings, 1, seed).state_dict()  # holds the settings that the method has
            self._keys[method] = (self.learner, start)
            same = before.get(method) == self._keys[method]
            simulations[method] = self.simulations[method] if same else simulate(method, self.learner, seed=seed, settings=settings)
        self.simulations = simulations

    def _answer(self) -> None:
        """Simulate and draw at once; the picture and the table follow when nothing has moved for a moment."""
        self._simulate()
        self.keep(quickly=True)
        if self._later:
            self._later.cancel()
        self._later = threading.Timer(REST, self.guarded(self.keep, clears=False))
        self._later.daemon = True
        self._later.start()

    def _entered(self, name: str, value) -> None:
        group, _, inner = name.partition(".")
        draft, own = (self._learner, inner) if group == "learner" else (self._config, name)
        changed = draft.put({own: value})
        for full, row in self.rows.items():
            if (full.partition(".")[0] == "learner") == (group == "learner"):
                key = full.partition(".")[2] if group == "learner" else full
                if key in draft.errors:
                    row.say(draft.errors[key])
                elif changed or row.error or full == name:
                    row.show(draft.values[key])
        if changed:
            self._answer()

    def _redraw(self, change) -> None:
        self.keep()

    def _chosen(self, change) -> None:
        self.methods = tuple(change["new"])
        self._answer()

    def _build(self) -> w.Widget:
        def row(name: str, field, value) -> w.Widget:
            self.rows[name] = SettingRow(name, field, value, self.guarded(self._entered), live=True)
            return self.rows[name].widget

        fields, values = setting_names(), flat(self.config)
        self.choice = w.SelectMultiple(options=SIMULATED, value=self.methods, description="Curricula", rows=5, style=LABEL, layout=w.Layout(width="330px"))
        self.choice.observe(self.guarded(self._chosen), "value")
        moved = [row(name, fields[name], values[name]) for name in MOVED]
        learner = [row(f"learner.{name}", field, getattr(self.learner, name)) for name, field in LearnerSettings.model_fields.items()]
        seed = row("seed", fields["seed"], values["seed"])
        self.drawn = w.ToggleButtons(options=list(DRAWN), description="Chart", style={"description_width": "50px", "button_width": "auto"})
        self.drawn.observe(self.guarded(self._redraw), "value")
        hint = w.HTML(paragraph("Ctrl and Shift choose several."))
        folded = w.Accordion([w.VBox([*learner, seed])], titles=["The simulated learner"], selected_index=None)
        return w.VBox([self.message, w.HBox([self.choice, hint]), *moved, folded, self.drawn])
