//! Activation functions of one value.

/// An activation, as an op of its own or at the end of another op.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Act {
    #[default]
    None,
    /// `x · Φ(x)` with the error function, not its tanh approximation (Hendrycks and Gimpel 2016).
    Gelu,
    Relu,
    /// `x / (1 + e^-x)`.
    Silu,
}

impl Act {
    /// The value at `x`, within an f32 ulp of the exact one. NaN stays NaN.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Act::None => x,
            // erfc rather than 1 + erf: no cancellation for negative x.
            Act::Gelu if x.is_infinite() => x.max(0.0),
            Act::Gelu => (0.5 * f64::from(x) * erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2)) as f32,
            Act::Relu if x <= 0.0 => 0.0,
            Act::Relu => x,
            Act::Silu if x == f32::NEG_INFINITY => 0.0,
            Act::Silu => x / (1.0 + (-x).exp()),
        }
    }

    /// Spelling in case names and kernel symbols.
    pub const fn name(self) -> &'static str {
        match self {
            Act::None => "none",
            Act::Gelu => "gelu",
            Act::Relu => "relu",
            Act::Silu => "silu",
        }
    }
}

/// `1 - erf(z)`, relative error at most 3e-9.
///
/// For z >= 0, `e^(z²) (1 + z) erfc(z)` is smooth and bounded, so a polynomial in `t = (z - 2.5) / (z + 2.5)`, which
/// maps `[0, ∞)` to `[-1, 1)`, follows it everywhere: Chebyshev interpolation, 64 nodes, cut after degree 12.
fn erfc(z: f64) -> f64 {
    const P: [f64; 13] = [
        0.737822274146655,
        -0.2470467646109524,
        0.07634433334719475,
        0.01629889347073038,
        -0.03152236109519177,
        0.01437980500444419,
        -0.0008546381991891838,
        -0.0017394926116709453,
        0.00035850175587182065,
        0.00022722900629901233,
        -5.922255046542091e-05,
        -2.4879592448456833e-05,
        5.904439447590448e-06,
    ];
    let a = z.abs();
    let t = (a - 2.5) / (a + 2.5);
    let tail = (-a * a).exp() / (1.0 + a) * P.iter().rev().fold(0.0, |sum, c| sum * t + c);
    if z < 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erfc by its series for small z and its continued fraction for large z, both in f64.
    fn erfc_slow(z: f64) -> f64 {
        if z < 0.0 {
            return 2.0 - erfc_slow(-z);
        }
        if z < 2.5 {
            // erf = 2/√π e^(-z²) Σ 2ⁿ z^(2n+1) / (1·3·…·(2n+1)): all terms positive.
            let (mut term, mut sum) = (z, z);
            for n in 1..200 {
                term *= 2.0 * z * z / (2 * n + 1) as f64;
                sum += term;
            }
            return 1.0 - std::f64::consts::FRAC_2_SQRT_PI * (-z * z).exp() * sum;
        }
        let fraction = (1..300).rev().fold(0.0, |f, n| n as f64 / 2.0 / (z + f));
        (-z * z).exp() / ((z + fraction) * std::f64::consts::PI.sqrt())
    }

    #[test]
    fn erfc_is_accurate_on_both_sides() {
        for i in -6000..9000 {
            let z = i as f64 / 1000.0;
            let (got, want) = (erfc(z), erfc_slow(z));
            assert!((got / want - 1.0).abs() < 1e-8, "erfc({z}) = {got}, want {want}");
        }
        assert_eq!(erfc(40.0), 0.0);
        assert!((erfc(0.0) - 1.0).abs() < 3e-9);
    }

    #[test]
    fn values() {
        for (act, x, want) in [
            (Act::Gelu, 1.0, 0.841_344_8),
            (Act::Gelu, -1.0, -0.158_655_26),
            (Act::Gelu, -5.0, -1.433_257_9e-6),
            (Act::Silu, 1.0, 0.731_058_6),
            (Act::Silu, -20.0, -4.122_307e-8),
        ] {
            let got = act.apply(x);
            assert!((got / want - 1.0).abs() < 2e-7, "{act:?}({x}) = {got}, want {want}");
        }
        assert_eq!(Act::Gelu.apply(0.0), 0.0);
        assert_eq!(Act::Gelu.apply(30.0), 30.0);
        assert_eq!(Act::Relu.apply(-3.0), 0.0);
        assert_eq!(Act::None.apply(-3.0), -3.0);
        for act in [Act::None, Act::Gelu, Act::Relu, Act::Silu] {
            assert!(act.apply(f32::NAN).is_nan(), "{act:?} hides a NaN");
            assert_eq!(act.apply(f32::INFINITY), f32::INFINITY, "{act:?}");
        }
    }
}
