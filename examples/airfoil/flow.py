"""Compute the exact potential flow past Joukowski airfoils.

The map z = zeta + b^2 / zeta takes the outside of a circle through zeta = b to the outside of an airfoil whose trailing
edge, z = 2b, is a cusp. The flow past the circle is a stream, a doublet and a vortex; the Kutta condition, that the
velocity at the trailing edge is finite, fixes the vortex. Sources: L. M. Milne-Thomson, "Theoretical Aerodynamics",
4th ed., Macmillan 1966 (Dover 1973), on Joukowski's transformation; J. Katz and A. Plotkin, "Low-Speed Aerodynamics",
2nd ed., Cambridge 2001, chapter 6.

Points and velocities are complex: x + iy and u + iv. Lengths are in units of 4b, the chord of the flat plate (an
airfoil's own chord is a few percent longer), and velocities in units of the free stream's speed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Complex = npt.NDArray[np.complex128]
Real = npt.NDArray[np.float64]

_B = 0.25


@dataclass(frozen=True)
class Airfoil:
    """Describe an airfoil and its angle of attack.

    `camber` and `thickness` are the largest ones as fractions of the chord, to first order in both; `thickness` must be
    positive, or the leading edge is singular. `angle_of_attack` is in radians.
    """

    camber: float
    thickness: float
    angle_of_attack: float

    @property
    def centre(self) -> complex:
        """Return the circle's centre."""
        return _B * complex(-4 / 27**0.5 * self.thickness, 2 * self.camber)

    @property
    def radius(self) -> float:
        """Return the circle's radius: the circle passes through the trailing edge's image."""
        return abs(_B - self.centre)

    @property
    def trailing_edge_angle(self) -> float:
        """Return the angle of the trailing edge's image, seen from the circle's centre."""
        return float(np.angle(_B - self.centre))

    @property
    def circulation(self) -> float:
        """Return the circulation, clockwise, that the Kutta condition asks for."""
        return float(4 * np.pi * self.radius * np.sin(self.angle_of_attack - self.trailing_edge_angle))

    @property
    def lift_coefficient(self) -> float:
        """Return the lift by the Kutta-Joukowski theorem, per unit of dynamic pressure and length."""
        return 2 * self.circulation


@dataclass(frozen=True)
class Surface:
    """Hold `points` on an airfoil's surface, counterclockwise, and the `velocity` and `pressure_coefficient` there.

    `elements` are the tangents dz, one each per point, so that sums over points times them are contour integrals.
    """

    points: Complex
    elements: Complex
    velocity: Complex
    pressure_coefficient: Real


def _map(zeta: Complex) -> Complex:
    return zeta + _B**2 / zeta


def _map_derivative(zeta: Complex) -> Complex:
    ratio: Complex = _B / zeta
    return 1 - ratio**2


def _velocity_from_circle(airfoil: Airfoil, zeta: Complex) -> Complex:
    arm = zeta - airfoil.centre
    stream = np.exp(-1j * airfoil.angle_of_attack)
    doublet = -(airfoil.radius**2) * np.conj(stream) / arm**2
    vortex = 1j * airfoil.circulation / (2 * np.pi * arm)
    conjugate: Complex = (stream + doublet + vortex) / _map_derivative(zeta)
    return np.conj(conjugate)


def surface(airfoil: Airfoil, points: int) -> Surface:
    """Return the flow at points that are evenly spaced on the circle, half a spacing clear of the trailing edge.

    At the trailing edge itself the velocity is finite, but is the quotient of two zeros.
    """
    angles = airfoil.trailing_edge_angle + 2 * np.pi * (np.arange(points) + 0.5) / points
    arm = airfoil.radius * np.exp(1j * angles)
    zeta = airfoil.centre + arm
    velocity = _velocity_from_circle(airfoil, zeta)
    elements = _map_derivative(zeta) * 1j * arm * (2 * np.pi / points)
    return Surface(_map(zeta), elements, velocity, 1 - np.abs(velocity) ** 2)


def points_around(airfoil: Airfoil, radii: Real, angles: Real) -> Complex:
    """Return the points whose images lie at `radii`, in circle radii and above 1, and `angles` around the circle."""
    return _map(airfoil.centre + airfoil.radius * radii * np.exp(1j * angles))


def velocity(airfoil: Airfoil, points: Complex) -> Complex:
    """Return the velocity at points outside the airfoil."""
    root = np.sqrt(points**2 / 4 - _B**2)
    candidates = np.stack([points / 2 + root, points / 2 - root])
    # Their product is b^2: just one of them lies outside the circle.
    distances = np.abs(candidates - airfoil.centre)
    return _velocity_from_circle(airfoil, np.where(distances[0] > distances[1], candidates[0], candidates[1]))


def normal_velocity(at: Surface) -> Real:
    """Return the velocity through the surface, outwards: zero, because the airfoil is solid."""
    normals = -1j * at.elements / np.abs(at.elements)
    return np.real(at.velocity * np.conj(normals))


def force_coefficients(airfoil: Airfoil, at: Surface) -> tuple[float, float]:
    """Return the drag and the lift that the surface pressure adds up to, per unit of dynamic pressure and length.

    The drag is zero (d'Alembert); the lift is `airfoil.lift_coefficient`.
    """
    force = np.sum(1j * at.pressure_coefficient * at.elements) * np.exp(-1j * airfoil.angle_of_attack)
    return float(force.real), float(force.imag)


def divergence(airfoil: Airfoil, points: Complex, spacing: float = 1e-5) -> Real:
    """Return du/dx + dv/dy by central differences: zero, because the flow is incompressible."""
    along_x = velocity(airfoil, points + spacing) - velocity(airfoil, points - spacing)
    along_y = velocity(airfoil, points + 1j * spacing) - velocity(airfoil, points - 1j * spacing)
    return (along_x.real + along_y.imag) / (2 * spacing)
