//! Medians, spreads, and whether a series of ratios is above or below a threshold for sure.
//!
//! Invariant: pure functions of their arguments.

use std::cmp::Ordering;

/// Chance that a verdict is wrong on one side, at most.
const DOUBT: f64 = 0.05;

/// Order statistics of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    pub(super) min: f64,
    pub(super) lower_quartile: f64,
    pub(super) median: f64,
    pub(super) upper_quartile: f64,
    pub(super) max: f64,
}

impl Summary {
    /// `values` must not be empty.
    pub(super) fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        Self {
            min: quantile(&sorted, 0.0),
            lower_quartile: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            upper_quartile: quantile(&sorted, 0.75),
            max: quantile(&sorted, 1.0),
        }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// With linear interpolation between neighbours.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let position = at * (sorted.len() - 1) as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    below + (above - below) * position.fract()
}

/// The interval that holds the true median unless the series is unlucky (5 % on either side): from the k-th smallest
/// to the k-th largest value, by the sign test, which asks nothing of the distribution. `None`: too few values.
pub(super) fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len();
    let mut tail = 0.0;
    let mut term = 0.5f64.powi(i32::try_from(count).ok()?);
    let mut cut = 0;
    while cut < count && tail + term <= DOUBT {
        tail += term;
        term *= (count - cut) as f64 / (cut + 1) as f64;
        cut += 1;
    }
    let sorted = sorted(values);
    Some((*sorted.get(cut.checked_sub(1)?)?, *sorted.get(count - cut)?))
}

/// Where the series lies relative to `threshold`: `None` while its interval contains it.
pub(super) fn side(values: &[f64], threshold: f64) -> Option<Ordering> {
    let (low, high) = median_interval(values)?;
    if low >= threshold {
        Some(Ordering::Greater)
    } else if high < threshold {
        Some(Ordering::Less)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((summary.min, summary.median, summary.max), (1.0, 2.5, 4.0));
        assert_eq!((summary.lower_quartile, summary.upper_quartile), (1.75, 3.25));
        assert_eq!(Summary::of(&[7.0]).median, 7.0);
    }

    #[test]
    fn interval_follows_the_binomial_tables() {
        let series = |count: i32| (1..=count).map(f64::from).collect::<Vec<_>>();
        assert_eq!(median_interval(&series(4)), None);
        assert_eq!(median_interval(&series(5)), Some((1.0, 5.0)));
        assert_eq!(median_interval(&series(7)), Some((1.0, 7.0)));
        assert_eq!(median_interval(&series(8)), Some((2.0, 7.0)));
        assert_eq!(median_interval(&series(16)), Some((5.0, 12.0)));
    }

    #[test]
    fn undecided_while_the_interval_straddles() {
        let low = [0.9, 0.99, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(side(&low, 0.97), Some(Ordering::Greater));
        let both = [0.9, 0.95, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(side(&both, 0.97), None);
        assert_eq!(side(&[0.9; 8], 0.97), Some(Ordering::Less));
    }
}
