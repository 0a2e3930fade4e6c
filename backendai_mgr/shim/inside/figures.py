"""A backend of matplotlib: figures are shown as PNG images of the run, by `show()` or at its end, and closed.

Executed when matplotlib imports it.  `emit`, which the host defines here before, takes the bytes of an image.
"""

import io

from matplotlib._pylab_helpers import Gcf
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    def emit(png: bytes) -> None: ...


class FigureCanvas(FigureCanvasAgg):  # type: ignore[misc]
    pass


class FigureManager(FigureManagerBase):  # type: ignore[misc]
    def show(self) -> None:
        show_one(self)


FigureCanvas.manager_class = FigureManager


def new_figure_manager(num: int, *args: "Any", **kwargs: "Any") -> FigureManager:
    kind = kwargs.pop("FigureClass", Figure)
    return new_figure_manager_given_figure(num, kind(*args, **kwargs))


def new_figure_manager_given_figure(num: int, figure: "Any") -> FigureManager:
    return FigureManager(FigureCanvas(figure), num)


def draw_if_interactive() -> None:
    pass


def show_one(manager: "Any") -> None:
    Gcf.destroy(manager.num)  # first: what cannot be drawn must not come again with each later run
    file = io.BytesIO()
    manager.canvas.figure.savefig(file, format="png", bbox_inches="tight")
    emit(file.getvalue())


def show(*args: "Any", **kwargs: "Any") -> None:
    """Show all figures in the order of their numbers."""
    for manager in sorted(Gcf.get_all_fig_managers(), key=lambda manager: manager.num):
        if isinstance(manager, FigureManager):
            show_one(manager)
