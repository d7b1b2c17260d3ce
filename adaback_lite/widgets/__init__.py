"""Panels for a notebook: settings to move, a run to steer, a sample to look at, runs to compare, the simulator.

    from adaback_lite import widgets

    widgets.controls()                        sliders and boxes for every setting
    widgets.live({"out": "runs/live"})        start, pause, change and stop a run
    widgets.sample("runs/live", id=3)         what was written for one sample
    widgets.compare("runs")                   runs side by side
    widgets.simulator()                       curricula against a simulated learner, at once

Each is shown by being the last expression of a cell. All are views: what they show stands in a run's folder, so closing one or
running its cell again loses nothing. Without a front end (papermill, nbclient, nbconvert) the same cells leave static charts and
tables, and `live` trains without waiting for a click.
"""

from .compare_panel import ComparePanel, compare
from .live_panel import LivePanel, live
from .sample_panel import SamplePanel, sample
from .settings_panel import Controls, controls
from .simulator_panel import SimulatorPanel, simulator

__all__ = ["ComparePanel", "Controls", "LivePanel", "SamplePanel", "SimulatorPanel", "compare", "controls", "live", "sample", "simulator"]
