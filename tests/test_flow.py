"""Check the airfoil workload's flow against what potential theory says, and the workloads' data against what they promise."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from examples.airfoil import data as airfoil_data
from examples.airfoil import flow
from examples.digits import data as digits_data

B = 0.25  # the map's constant: the trailing edge is at 2B
AIRFOILS = {
    "thin": flow.Airfoil(0.0, 0.02, 0.0),
    "symmetric": flow.Airfoil(0.0, 0.12, 0.1),
    "cambered": flow.Airfoil(0.04, 0.12, 0.0),
    "both": flow.Airfoil(0.05, 0.18, 0.15),
    "diving": flow.Airfoil(0.02, 0.08, -0.3),
}
airfoils = pytest.mark.parametrize("airfoil", AIRFOILS.values(), ids=AIRFOILS)
any_airfoil = st.builds(flow.Airfoil, st.floats(0, 0.05), st.floats(0.08, 0.18), st.floats(-0.05, 0.15))


def circle(airfoil: flow.Airfoil, points: int, radius: float = 1.0) -> flow.Complex:
    """Return points evenly spaced on a circle around the airfoil's image, in circle radii."""
    return airfoil.centre + radius * airfoil.radius * np.exp(2j * np.pi * (np.arange(points) + 0.5) / points)


def closed_integral(values: flow.Complex, points: flow.Complex) -> complex:
    """Integrate along a smooth closed curve through evenly parametrised points, as precisely as rounding allows.

    The derivative is by Fourier's series, and the trapezoidal rule converges exponentially for a periodic function.
    """
    waves = np.fft.fftfreq(len(points), 1 / len(points))
    derivative = np.fft.ifft(1j * waves * np.fft.fft(points))
    return complex(np.sum(values * derivative) * 2 * np.pi / len(points))


# ------------------------------------------------------------------ the map


@airfoils
def test_the_circle_passes_through_the_trailing_edge_and_the_map_is_singular_there(airfoil: flow.Airfoil) -> None:
    assert abs(B - airfoil.centre) == pytest.approx(airfoil.radius, rel=1e-15)
    edge = airfoil.centre + airfoil.radius * np.exp(1j * airfoil.trailing_edge_angle)
    assert abs(edge - B) < 1e-15
    spacing = 1e-4
    quadratic = [(flow._map(np.array(B + step * spacing)) - 2 * B) / spacing**2 for step in (1, 1j, -1, -1j)]
    # z = 2b + (zeta - b)^2 / b + ...: angles double, so the tangents of both sides meet in a cusp
    np.testing.assert_allclose(quadratic, [1 / B, -1 / B, 1 / B, -1 / B], rtol=1e-3)


@airfoils
def test_the_other_singular_point_lies_inside_the_circle(airfoil: flow.Airfoil) -> None:
    assert abs(-B - airfoil.centre) < airfoil.radius


def test_without_camber_the_airfoil_is_symmetric_and_a_plate_without_thickness_has_chord_one() -> None:
    at = flow.surface(AIRFOILS["symmetric"], 200)
    np.testing.assert_allclose(at.points, np.conj(at.points[::-1]), atol=1e-15)
    plate = flow.surface(flow.Airfoil(0.0, 1e-9, 0.0), 4001)
    assert np.ptp(plate.points.real) == pytest.approx(1, abs=1e-6)
    assert np.ptp(plate.points.imag) < 1e-8


@pytest.mark.parametrize("size", [0.002, 0.02])
def test_camber_and_thickness_are_what_they_say_to_first_order(size: float) -> None:
    thick = flow.surface(flow.Airfoil(0.0, size, 0.0), 20_000)
    chord = np.ptp(thick.points.real)
    assert np.ptp(thick.points.imag) / chord == pytest.approx(size, rel=3 * size)
    cambered = flow.surface(flow.Airfoil(size, 1e-6, 0.0), 20_000)
    assert cambered.points.imag.max() / np.ptp(cambered.points.real) == pytest.approx(size, rel=3 * size)


@given(any_airfoil, st.floats(1.05, 4), st.floats(0, 2 * np.pi))
def test_the_map_is_inverted_exactly_outside_the_airfoil(airfoil: flow.Airfoil, radius: float, angle: float) -> None:
    zeta = airfoil.centre + airfoil.radius * radius * np.exp(1j * np.array([angle]))
    z = flow.points_around(airfoil, np.array([radius]), np.array([angle]))
    np.testing.assert_allclose(z, zeta + B**2 / zeta, rtol=1e-14)
    expected = flow._velocity_from_circle(airfoil, zeta)
    np.testing.assert_allclose(flow.velocity(airfoil, z), expected, rtol=1e-9)


# ------------------------------------------------------------------ the Kutta condition


@airfoils
def test_on_the_circle_the_trailing_edge_is_a_stagnation_point(airfoil: flow.Airfoil) -> None:
    zeta = np.array([B + 0j])
    near = zeta + 1e-7 * (zeta - airfoil.centre)
    # the velocity in the circle's plane is the airfoil's times the map's derivative
    speed = np.abs(flow._velocity_from_circle(airfoil, near) * np.conj(flow._map_derivative(near)))
    assert speed[0] < 1e-6


@airfoils
def test_the_velocity_stays_finite_towards_the_trailing_edge_and_agrees_on_both_sides(airfoil: flow.Airfoil) -> None:
    before = None
    for points in (1_000, 10_000, 100_000):
        at = flow.surface(airfoil, points)
        lower, upper = at.velocity[-1], at.velocity[0]  # half a spacing to either side of the trailing edge
        assert 0.3 < abs(upper) < 1.5
        apart = abs(upper - lower)
        assert before is None or apart < before / 5
        before = apart
    assert before is not None
    assert before < 1e-3


def test_any_other_circulation_makes_the_trailing_edge_singular() -> None:
    class Wrong(flow.Airfoil):
        @property
        def circulation(self) -> float:
            return 1.1 * super().circulation

    speeds = [np.abs(flow.surface(Wrong(0.05, 0.18, 0.15), points).velocity[0]) for points in (1_000, 10_000, 100_000)]
    assert speeds[1] > 5 * speeds[0]
    assert speeds[2] > 5 * speeds[1]


# ------------------------------------------------------------------ circulation and forces


@airfoils
@pytest.mark.parametrize("radius", [1.0, 1.5, 10.0])
def test_the_circulation_is_the_contour_integral_of_the_velocity(airfoil: flow.Airfoil, radius: float) -> None:
    """The same around every contour: the real part of the integral of u - iv. Its imaginary part, the outflow, is zero."""
    zeta = circle(airfoil, 4_000, radius)
    conjugate = np.conj(flow._velocity_from_circle(airfoil, zeta))
    integral = closed_integral(conjugate * flow._map_derivative(zeta), zeta)
    assert integral.real == pytest.approx(-airfoil.circulation, abs=1e-12)  # clockwise is positive there
    assert integral.imag == pytest.approx(0, abs=1e-12)


@airfoils
def test_in_the_airfoil_s_own_plane_too(airfoil: flow.Airfoil) -> None:
    zeta = circle(airfoil, 2_000, 1.3)
    z = flow._map(zeta)
    integral = closed_integral(np.conj(flow.velocity(airfoil, z)), z)
    assert integral == pytest.approx(-airfoil.circulation, abs=1e-10)


@airfoils
def test_the_lift_is_the_pressure_s_and_there_is_no_drag(airfoil: flow.Airfoil) -> None:
    drag, lift = flow.force_coefficients(airfoil, flow.surface(airfoil, 4_001))
    assert lift == pytest.approx(airfoil.lift_coefficient, abs=1e-9)
    assert drag == pytest.approx(0, abs=1e-9)


@given(any_airfoil)
def test_the_lift_is_the_pressure_s_for_every_airfoil_of_the_workload(airfoil: flow.Airfoil) -> None:
    drag, lift = flow.force_coefficients(airfoil, flow.surface(airfoil, 2_001))
    assert (drag, lift) == pytest.approx((0, airfoil.lift_coefficient), abs=1e-6)


@airfoils
def test_blasius_theorem_gives_the_same_force_far_from_the_airfoil(airfoil: flow.Airfoil) -> None:
    """Check X - iY = (i rho / 2) times the integral of (u - iv)^2 dz, here per half rho U^2, on a contour of its own."""
    zeta = circle(airfoil, 2_000, 3)
    z = flow._map(zeta)
    force = 1j * closed_integral(np.conj(flow.velocity(airfoil, z)) ** 2, z)
    along = np.conj(force) * np.exp(-1j * airfoil.angle_of_attack)  # into the stream's own axes
    assert (along.real, along.imag) == pytest.approx((0, airfoil.lift_coefficient), abs=1e-9)


def test_the_lift_is_thin_airfoil_theory_s_for_thin_airfoils() -> None:
    for camber, angle in ((0.0, 0.01), (0.0, -0.02), (0.01, 0.0), (0.01, 0.02)):
        airfoil = flow.Airfoil(camber, 1e-4, angle)
        assert airfoil.lift_coefficient == pytest.approx(2 * np.pi * (angle + 2 * camber), abs=1e-4)
    assert flow.Airfoil(0.0, 0.12, 0.0).lift_coefficient == pytest.approx(0, abs=1e-15)


def test_thickness_adds_lift() -> None:
    lifts = [flow.Airfoil(0.0, thickness, 0.1).lift_coefficient for thickness in (0.01, 0.1, 0.2)]
    assert lifts == sorted(lifts)
    assert lifts[2] / lifts[0] == pytest.approx((1 + 0.2 * 4 / 27**0.5) / (1 + 0.01 * 4 / 27**0.5), rel=1e-12)


# ------------------------------------------------------------------ the field


def field(airfoil: flow.Airfoil, points: int = 500) -> flow.Complex:
    generator = np.random.default_rng(3)
    return flow.points_around(airfoil, generator.uniform(1.1, 4, points), generator.uniform(0, 2 * np.pi, points))


@airfoils
def test_the_flow_is_incompressible_and_irrotational(airfoil: flow.Airfoil) -> None:
    points, spacing = field(airfoil), 1e-5

    def slope(step: complex) -> flow.Complex:
        return (flow.velocity(airfoil, points + step) - flow.velocity(airfoil, points - step)) / (2 * spacing)

    along_x, along_y = slope(spacing), slope(1j * spacing)
    gradient = np.abs(along_x)
    assert gradient.max() > 1
    assert (np.abs(along_x.real + along_y.imag) < 1e-6 * gradient + 1e-7).all()
    assert (np.abs(along_x.imag - along_y.real) < 1e-6 * gradient + 1e-7).all()
    np.testing.assert_allclose(flow.divergence(airfoil, points), along_x.real + along_y.imag, atol=1e-12)


@airfoils
def test_the_velocity_is_continuous_around_the_airfoil(airfoil: flow.Airfoil) -> None:
    """No branch cut of the inverse map shows, neither along the chord's line nor across it."""
    for radius in (1.02, 1.2, 3.0):
        points = flow.points_around(airfoil, np.full(20_001, radius), np.linspace(0, 2 * np.pi, 20_001))
        velocity = flow.velocity(airfoil, points)
        steps = np.abs(np.diff(velocity))
        assert steps.max() < 0.02
        assert abs(velocity[0] - velocity[-1]) < 1e-9


@airfoils
def test_far_away_the_flow_is_the_free_stream(airfoil: flow.Airfoil) -> None:
    for distance in (1e3, 1e6):
        points = distance * np.exp(1j * np.linspace(0, 6, 50))
        difference = np.abs(flow.velocity(airfoil, points) - np.exp(1j * airfoil.angle_of_attack))
        assert difference.max() < 1 / distance + abs(airfoil.circulation) / distance


# ------------------------------------------------------------------ the surface


@airfoils
def test_nothing_flows_through_the_surface(airfoil: flow.Airfoil) -> None:
    at = flow.surface(airfoil, 1_000)
    assert np.abs(flow.normal_velocity(at)).max() < 1e-9
    tangents = at.elements / np.abs(at.elements)
    np.testing.assert_allclose(np.abs(np.real(at.velocity * np.conj(tangents))), np.abs(at.velocity), atol=1e-9)


@airfoils
def test_just_off_the_surface_the_flow_is_the_surface_s(airfoil: flow.Airfoil) -> None:
    at = flow.surface(airfoil, 100)
    angles = airfoil.trailing_edge_angle + 2 * np.pi * (np.arange(100) + 0.5) / 100
    off = flow.points_around(airfoil, np.full(100, 1 + 1e-9), angles)
    np.testing.assert_allclose(off, at.points, atol=1e-8)
    np.testing.assert_allclose(flow.velocity(airfoil, off), at.velocity, atol=1e-5)


@airfoils
def test_the_pressure_is_bernoulli_s_and_one_at_the_nose_s_stagnation_point(airfoil: flow.Airfoil) -> None:
    at = flow.surface(airfoil, 200_000)
    np.testing.assert_allclose(at.pressure_coefficient + np.abs(at.velocity) ** 2, 1, atol=1e-12)
    assert at.pressure_coefficient.max() == pytest.approx(1, abs=1e-6)
    # the largest is at the nose, ahead of the quarter chord, and not at the cusp, whose speed is not zero
    assert at.points[np.argmax(at.pressure_coefficient)].real < -B


@airfoils
def test_the_elements_are_the_curve_s_own_and_close_it(airfoil: flow.Airfoil) -> None:
    at = flow.surface(airfoil, 4_000)
    assert abs(at.elements.sum()) < 1e-12
    central = (np.roll(at.points, -1) - np.roll(at.points, 1)) / 2
    np.testing.assert_allclose(at.elements[1:-1], central[1:-1], atol=1e-6 * np.abs(at.elements).max() + 1e-9)
    area = 0.5 * np.sum(np.conj(at.points) * at.elements).imag
    assert area > 0  # counterclockwise


def test_the_upper_side_sucks_at_an_angle_of_attack() -> None:
    at = flow.surface(AIRFOILS["symmetric"], 1_000)
    upper = at.points.imag > 0
    assert at.pressure_coefficient[upper].mean() < at.pressure_coefficient[~upper].mean() - 0.1


@given(any_airfoil)
def test_a_mirrored_airfoil_has_the_mirrored_flow(airfoil: flow.Airfoil) -> None:
    mirrored = flow.Airfoil(-airfoil.camber, airfoil.thickness, -airfoil.angle_of_attack)
    a, b = flow.surface(airfoil, 101), flow.surface(mirrored, 101)
    np.testing.assert_allclose(b.points, np.conj(a.points[::-1]), atol=1e-14)
    np.testing.assert_allclose(b.pressure_coefficient, a.pressure_coefficient[::-1], atol=1e-9)
    assert mirrored.lift_coefficient == pytest.approx(-airfoil.lift_coefficient, abs=1e-14)


# ------------------------------------------------------------------ the data


@pytest.fixture(scope="module")
def loaded() -> tuple[airfoil_data.Batch[airfoil_data.Float32], ...]:
    return airfoil_data.load()


def same(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
    )


def test_the_airfoil_data_have_the_sizes_they_say(loaded: tuple[airfoil_data.Batch[airfoil_data.Float32], ...]) -> None:
    pool = airfoil_data._POOL
    surface, volume = pool * airfoil_data.SURFACE_POINTS, pool * airfoil_data.VOLUME_POINTS
    for batch, count in zip(loaded, (airfoil_data.AIRFOILS, airfoil_data.TEST_AIRFOILS), strict=True):
        shapes = [(count, 3), (count, surface, 2), (count, surface), (count, volume, 2), (count, volume, 2)]
        assert [array.shape for array in batch] == shapes
        assert {array.dtype for array in batch} == {np.dtype("float32")}
        assert all(np.isfinite(array).all() for array in batch)
        assert np.abs(batch.conditions).max() <= 1
    assert airfoil_data.UPDATES_PER_EPOCH * airfoil_data.EFFECTIVE_BATCH_SIZE == 2 * airfoil_data.AIRFOILS


def test_no_test_airfoil_is_trained_on(loaded: tuple[airfoil_data.Batch[airfoil_data.Float32], ...]) -> None:
    training, test = ({tuple(row) for row in batch.conditions} for batch in loaded)
    assert (len(training), len(test)) == (airfoil_data.AIRFOILS, airfoil_data.TEST_AIRFOILS)
    assert not training & test


def test_the_airfoil_data_are_the_flow_s(loaded: tuple[airfoil_data.Batch[airfoil_data.Float32], ...]) -> None:
    training, _ = loaded
    low, high = airfoil_data._CONDITION_RANGES.T
    for number in range(0, airfoil_data.AIRFOILS, 12):
        scaled = training.conditions[number].astype(np.float64)
        airfoil = flow.Airfoil(*(low + (high - low) * (scaled + 1) / 2))
        surface = flow.surface(airfoil, training.surface_pressure.shape[1])
        np.testing.assert_allclose(training.surface_pressure[number], surface.pressure_coefficient, atol=1e-5)
        points = training.volume_position[number].astype(np.float64) @ np.array([1, 1j])
        velocity = training.volume_velocity[number].astype(np.float64) @ np.array([1, 1j])
        np.testing.assert_allclose(velocity, flow.velocity(airfoil, points), atol=2e-4)


def test_the_airfoil_batches_draw_each_airfoil_once_a_pass_at_points_of_its_own(
    loaded: tuple[airfoil_data.Batch[airfoil_data.Float32], ...],
) -> None:
    training, _ = loaded
    drawn = list(airfoil_data.batches(training, 1))
    size, surface, volume = airfoil_data.BATCH_SIZE, airfoil_data.SURFACE_POINTS, airfoil_data.VOLUME_POINTS
    shapes = [(size, 3), (size, surface, 2), (size, surface), (size, volume, 2), (size, volume, 2)]
    assert {tuple(array.shape for array in batch) for batch in drawn} == {tuple(shapes)}
    assert len(drawn) == airfoil_data.UPDATES_PER_EPOCH * airfoil_data.ACCUMULATION_STEPS
    passes = np.concatenate([batch.conditions for batch in drawn]).reshape(airfoil_data.PASSES_PER_EPOCH, -1, 3)
    for one in passes:
        assert {tuple(row) for row in one} == {tuple(row) for row in training.conditions}
    assert not np.array_equal(*passes)
    pool = {row.tobytes() for row in training.surface_position.reshape(-1, 2)}
    for batch in drawn[:3]:
        rows = [row.tobytes() for row in batch.surface_position.reshape(-1, 2)]
        assert len(set(rows)) == len(rows)  # no point is drawn twice
        assert set(rows) <= pool


def test_the_data_are_the_same_every_time(loaded: tuple[airfoil_data.Batch[airfoil_data.Float32], ...]) -> None:
    assert all(same(a, b) for a, b in zip(loaded, airfoil_data.load(), strict=True))
    assert not same(loaded[0], airfoil_data.load(seed=9)[0])
    a, b = (list(airfoil_data.batches(loaded[0], 1)) for _ in range(2))
    assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert not same(a[0], next(airfoil_data.batches(loaded[0], 1, seed=9)))
    digits = digits_data.load()
    assert all(same(x, y) for x, y in zip(digits, digits_data.load(), strict=True))
    assert same(next(digits_data.batches(digits[0], 1)), next(digits_data.batches(digits[0], 1)))
    for module in (airfoil_data, digits_data):
        first, again, other = (module.initial_weights(*seed) for seed in ((), (), (9,)))
        assert same(tuple(first.values()), tuple(again.values()))
        assert not same(tuple(first.values()), tuple(other.values()))


def test_the_digits_have_the_sizes_they_say() -> None:
    training, test = digits_data.load()
    sizes = digits_data.UPDATES_PER_EPOCH * digits_data.EFFECTIVE_BATCH_SIZE
    assert (training.images.shape, training.labels.shape) == ((sizes, 64), (sizes,))
    assert (test.images.shape, test.labels.shape) == ((1797 - sizes, 64), (1797 - sizes,))
    for digits in (training, test):
        assert (digits.images.dtype, digits.labels.dtype) == (np.float32, np.int32)
        assert (digits.images.min(), digits.images.max()) == (0, 1)
        assert set(digits.labels.tolist()) == set(range(10))
    batches = list(digits_data.batches(training, 2))
    assert len(batches) == 2 * digits_data.UPDATES_PER_EPOCH * digits_data.ACCUMULATION_STEPS
    assert {batch.images.shape for batch in batches} == {(digits_data.BATCH_SIZE, 64)}
    epochs = np.concatenate([batch.images for batch in batches]).reshape(2, sizes, 64)
    for epoch in epochs:  # each image once an epoch
        assert sorted(row.tobytes() for row in epoch) == sorted(row.tobytes() for row in training.images)
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("module", [airfoil_data, digits_data], ids=["airfoil", "digits"])
def test_the_initial_weights_have_the_shapes_and_spread_they_say(module: object) -> None:
    gain = 1 if module is airfoil_data else 2
    weights = module.initial_weights()  # type: ignore[attr-defined]
    for layer, (inputs, outputs) in module.LAYER_SIZES.items():  # type: ignore[attr-defined]
        kernel, bias = weights.pop(f"{layer}.kernel"), weights.pop(f"{layer}.bias")
        assert (kernel.shape, kernel.dtype, bias.shape, bias.dtype) == (
            *((inputs, outputs), np.float32, (outputs,), np.float32),
        )
        assert not bias.any()
        if module is airfoil_data and layer == "hidden1":
            kernel = kernel[airfoil_data.POSITION :]  # the gains scale the rows before
        assert kernel.std() == pytest.approx((gain / inputs) ** 0.5, rel=4 / kernel.size**0.5)
    assert not weights
