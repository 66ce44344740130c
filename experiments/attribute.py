"""Which training units do generated samples depend on?

Examples:
  python -m experiments.attribute --run=runs/digits --n=8
  python -m experiments.attribute --run=runs/digits --n=4 --method=exact --units=0,1,2,3 --top=4 --null=99
"""

import json

import numpy as np
from absl import flags

from experiments import common

common.define_sampling_flags(n=8)
common.define_data_flag()
flags.adopt_module_key_flags(common)
METHOD = flags.DEFINE_enum("method", "screen", ["exact", "differential", "screen"], "See ensdiff.attribute.")
TOP = flags.DEFINE_integer("top", 10, "Units reported a sample.")
VERIFY = flags.DEFINE_integer("verify", 50, "Units a sample that 'screen' verifies exactly.")
NULL = flags.DEFINE_integer("null", 99, "Null ablations a sample, for p-values; 0 is none.")
UNITS = flags.DEFINE_string("units", "", "Only these unit ids, joined by commas; by default all.")


def main() -> None:
    """Attribute, print a table, and write JSON and a report."""
    import ensdiff
    from ensdiff.report import HOW_TO_READ, Page, attribution_sections, write_page

    params = common.load_run()
    data = common.training_data(params)
    samples = common.draw_samples(params)
    att = ensdiff.attribute(
        params,
        samples,
        METHOD.value,
        top=TOP.value,
        units=common.unit_ids(UNITS.value) if UNITS.value else None,
        verify=max(VERIFY.value, TOP.value),
        null=NULL.value,
        progress=True,
    )
    print(att)
    out = common.output_folder("attribution")
    stem = f"{METHOD.value}_seed{flags.FLAGS.seed}"
    names = None if data is None else [[data.unit_names[int(i)] for i in row] for row in att.units]
    values = {
        "method": att.method,
        "distance": att.distance,
        "settings": att.settings,
        "units": att.units.tolist(),
        "names": names,
        "influence": np.asarray(att.influence, float).tolist(),
        "p_value": None if att.p_value is None else att.p_value.tolist(),
    }
    if common.is_writer():
        (out / f"{stem}.json").write_text(json.dumps(values, indent=1) + "\n")
    print(f"wrote {out / (stem + '.json')}")
    if data is None:
        print("no report: the run does not say what it was trained on; give --data=... for one")
        return
    sections = attribution_sections(params, data, samples, att, progress=True)
    if not common.is_writer():
        return
    title = f"What {len(samples)} samples of {data.name} depend on"
    page = write_page(out / f"{stem}.html", Page(title, HOW_TO_READ, common.facts(params, data), samples=sections))
    print(f"report: {page}")


if __name__ == "__main__":
    common.run(main, __doc__)
