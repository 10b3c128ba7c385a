//! How often a fault applies: the next `count` times, a random `share` of times, or a random share until the count is
//! used up.

use rand::RngExt;
use rand::rngs::StdRng;

/// With neither a count nor a share, a fault applies once.
pub(crate) fn count_or_once(count: Option<u32>, share: Option<f64>) -> Option<u32> {
    count.or(share.is_none().then_some(1))
}

pub(crate) fn check(share: Option<f64>) -> Result<(), String> {
    match share {
        Some(share) if !(0.0..=1.0).contains(&share) => {
            Err("share must be between 0 and 1.".to_owned())
        }
        _ => Ok(()),
    }
}

/// Decides at random whether a fault applies. If it does, its count goes down by one.
pub(crate) fn applies(count: &mut Option<u32>, share: Option<f64>, rng: &mut StdRng) -> bool {
    if *count == Some(0) || !share.is_none_or(|share| rng.random_bool(share)) {
        return false;
    }
    if let Some(count) = count {
        *count -= 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::{applies, count_or_once};

    fn hits(count: Option<u32>, share: Option<f64>) -> usize {
        let mut rng = StdRng::seed_from_u64(7);
        let mut count = count_or_once(count, share);
        (0..1000)
            .filter(|_| applies(&mut count, share, &mut rng))
            .count()
    }

    #[test]
    fn applies_once_by_default() {
        assert_eq!(hits(None, None), 1);
    }

    #[test]
    fn applies_count_times() {
        assert_eq!(hits(Some(3), None), 3);
    }

    #[test]
    fn applies_to_a_share_that_the_seed_repeats() {
        let first = hits(None, Some(0.25));
        assert!((200..300).contains(&first), "{first}");
        assert_eq!(first, hits(None, Some(0.25)));
        assert_eq!(hits(Some(10), Some(0.25)), 10);
    }
}
