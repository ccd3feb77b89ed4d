"""The command ``landscape``: the picture of the loss surface that runs descended."""

from __future__ import annotations

from gdtrain.cli.options import Parser, add_import, add_runs, faults_of_options, import_modules


def landscape(given: list[str]) -> int:
    """Draw the loss around the paths of the weights."""
    parser = Parser(
        "landscape",
        "Draw the full loss in the plane in which the weights of a run, or of several "
        "on the same data, have moved most, and their path over it. The runs must have been "
        "trained with monitors: [trajectory].",
        examples=("landscape moves --resolution 10",),
        notes="Needs matplotlib: pip install 'gdtrain[plots]'. To train a run for it:\n"
        "  python -m gdtrain --config batch.yaml monitors=trajectory --output-dir moves",
    )
    add_runs(parser, "landscape.png in the directory of the first run")
    parser.add_argument(
        "--resolution",
        type=int,
        default=40,
        metavar="N",
        help="compute the loss at N by N points (default: %(default)s)",
    )
    add_import(parser)
    options = parser.parse_args(given)
    if options.imports:
        import_modules(options.imports)
    from gdtrain.cli.trained.landscape_job import LandscapeJob

    with faults_of_options():
        return LandscapeJob(options.runs, options.out, options.resolution).run()
