//! How large the databases are and how long the rounds take.

use std::time::Duration;

#[derive(Clone, Copy)]
pub struct Scale {
    /// The links of a usual database.
    pub links: u32,
    /// The links of the small and the large database whose lists are compared.
    pub few_links: u32,
    pub many_links: u32,
    /// The stored events of each link of the large database.
    pub events_per_link: u32,
    /// How many events a round can send at most: each moves another link.
    pub events: usize,
    /// How many events are sent before the space that they waste is measured.
    pub events_before_bloat: u64,
    /// How often each thing is measured. The medians count.
    pub rounds: usize,
    /// How long a round is measured, and how long it runs before that.
    pub round: Duration,
    pub warm_up: Duration,
    /// How long the memory is watched under load.
    pub watch: Duration,
    /// The page of a list that is compared with the first.
    pub far_page: usize,
}

impl Scale {
    pub const FULL: Self = Self {
        links: 200_000,
        few_links: 10_000,
        many_links: 1_000_000,
        events_per_link: 3,
        events: 60_000,
        events_before_bloat: 3_000_000,
        rounds: 3,
        round: Duration::from_secs(3),
        warm_up: Duration::from_secs(1),
        watch: Duration::from_secs(15),
        far_page: 1000,
    };

    pub const QUICK: Self = Self {
        links: 10_000,
        few_links: 2_000,
        many_links: 20_000,
        events_per_link: 3,
        events: 8_000,
        events_before_bloat: 20_000,
        rounds: 1,
        round: Duration::from_secs(1),
        warm_up: Duration::from_millis(200),
        watch: Duration::from_secs(4),
        far_page: 200,
    };
}
