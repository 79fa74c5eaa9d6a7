//! Guards that tests remove, to show that what tests them fails then. Only with
//! the feature `unguarded`; without it every guard is on, and nothing asks.

/// What stands between a caller and the server, beside the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Every element of a batch is decided on, not the first alone.
    Batch,
    /// Headers have to say what the body says.
    Header,
    /// A name may stand once in an object.
    DuplicateKey,
    /// Pages of foreign sites may not call.
    Origin,
}

/// Whether a guard is on: always.
#[cfg(not(feature = "unguarded"))]
#[inline]
pub const fn is_on(_: Guard) -> bool {
    true
}

/// Whether a guard is on: unless `TOOLWARD_UNGUARDED` names it, in a list with
/// commas.
#[cfg(feature = "unguarded")]
pub fn is_on(guard: Guard) -> bool {
    static REMOVED: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let removed = REMOVED.get_or_init(|| std::env::var("TOOLWARD_UNGUARDED").unwrap_or_default());
    let name = match guard {
        Guard::Batch => "batch",
        Guard::Header => "header",
        Guard::DuplicateKey => "duplicate-key",
        Guard::Origin => "origin",
    };
    !removed.split(',').any(|removed| removed == name)
}
