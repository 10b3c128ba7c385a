//! How often a fault strikes: the next `count` times, a random `share` of times, or a random share
//! until the count is used up.

use rand::RngExt;
use rand::rngs::StdRng;

/// A fault that says neither how many times nor how often strikes once.
pub(crate) fn count_or_once(count: Option<u32>, share: Option<f64>) -> Option<u32> {
    count.or(share.is_none().then_some(1))
}

/// What is wrong with a share, if anything.
pub(crate) fn check(share: Option<f64>) -> Result<(), String> {
    match share {
        Some(share) if !(0.0..=1.0).contains(&share) => Err("share is from 0 to 1.".to_owned()),
        _ => Ok(()),
    }
}

/// Draws; a hit uses up one of the count.
pub(crate) fn strikes(count: &mut Option<u32>, share: Option<f64>, rng: &mut StdRng) -> bool {
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

    use super::{count_or_once, strikes};

    fn hits(count: Option<u32>, share: Option<f64>) -> usize {
        let mut rng = StdRng::seed_from_u64(7);
        let mut count = count_or_once(count, share);
        (0..1000)
            .filter(|_| strikes(&mut count, share, &mut rng))
            .count()
    }

    #[test]
    fn strikes_once_unless_told_otherwise() {
        assert_eq!(hits(None, None), 1);
    }

    #[test]
    fn strikes_the_next_so_many_times() {
        assert_eq!(hits(Some(3), None), 3);
    }

    #[test]
    fn strikes_a_share_and_the_same_one_for_the_same_seed() {
        let first = hits(None, Some(0.25));
        assert!((200..300).contains(&first), "{first}");
        assert_eq!(first, hits(None, Some(0.25)));
        assert_eq!(hits(Some(10), Some(0.25)), 10);
    }
}
