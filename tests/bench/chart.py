"""chart.py: SVG charts of measurements, drawn by gnuplot. False: it is not installed.

The text of a chart is data for gnuplot, and titles here are our own: nothing of it comes
from a measured file.
"""
import shutil
import subprocess

COLOURS = ["#1f77b4", "#d62728", "#ff7f0e", "#9467bd", "#8c564b", "#7f7f7f", "#2ca02c", "#17becf"]


def draw(path, script, data):
    """data: blocks by name, each a list of lines; available in the script as $name."""
    if not shutil.which("gnuplot"):
        return False
    text = "".join("$%s << EOD\n%s\nEOD\n" % (name, "\n".join(lines)) for name, lines in data.items())
    head = "set terminal svg size 1000,420 dynamic font 'sans-serif,13' background '#ffffff'\nset output '%s'\n"
    subprocess.run(["gnuplot"], input=text + head % path + script, text=True, check=True)
    return True


def ratios(path, workloads, modes, rows):
    """Bars of the ratio to plain SQLite, workload by workload, with min and max."""
    cell = {(r["workload"], r["mode"]): r for r in rows}
    lines = []
    for name, title in workloads:
        line = ['"%s"' % title]
        for mode, _ in modes:
            r = cell[name, mode]
            line += ["%.3f" % r["ratio"], "%.3f" % r["ratio_spread"][0], "%.3f" % r["ratio_spread"][1]]
        lines.append(" ".join(line))
    highest = max(r["ratio"] for r in rows)
    bars = ["$ratios using %d:%d:%d%s linecolor rgb '%s' title '%s'"
            % (2 + 3 * i, 3 + 3 * i, 4 + 3 * i, ":xtic(1)" if i == 0 else "",
               COLOURS[i % len(COLOURS)], title) for i, (_, title) in enumerate(modes)]
    script = ("set style data histograms\nset style histogram errorbars gap 1 linewidth 1\n"
              "set style fill solid 0.85\nset ylabel 'time, plain SQLite = 1'\nset grid ytics\n"
              "set yrange [0:%g]\nset key outside top center horizontal\nset arrow 1 from graph 0, first 1 "
              "to graph 1, first 1 nohead linecolor rgb '#000000' dashtype 2\nplot %s\n"
              % (1.1 * highest, ", ".join(bars)))
    return draw(path, script, {"ratios": lines})


def lines(path, xlabel, ylabel, series, logscale=""):
    """Series of (title, [(x, y)]) over a logarithmic x axis."""
    data = {"s%d" % i: ["%g %g" % p for p in points] for i, (_, points) in enumerate(series)}
    plots = ["$s%d using 1:2 with linespoints linecolor rgb '%s' pointtype 7 linewidth 2 title '%s'"
             % (i, COLOURS[i % len(COLOURS)], title) for i, (title, _) in enumerate(series)]
    script = ("set logscale x%s\nset xlabel '%s'\nset ylabel '%s'\nset grid\nset key outside top center "
              "horizontal\nplot %s\n" % (logscale, xlabel, ylabel, ", ".join(plots)))
    return draw(path, script, data)
