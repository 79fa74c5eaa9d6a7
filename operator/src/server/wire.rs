//! The version of the wire form in which a bundle is written.

use k8s_openapi::api::core::v1::ConfigMap;
use policy::bundle;

/// The newest version that all running sidecars read; `reads` is what each says.
/// What one reads that has not told yet is not known: then the version stays as
/// `before`, or goes down.
pub fn common(reads: impl Iterator<Item = Option<u32>>, before: Option<u32>) -> u32 {
    let newest = bundle::VERSION;
    let version = reads
        .map(|reads| reads.or(before).unwrap_or(newest))
        .min()
        .unwrap_or(newest);
    version.clamp(bundle::OLDEST, newest)
}

/// The version of the bundle that a ConfigMap carries.
pub fn of(map: &ConfigMap) -> Option<u32> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let text = map.data.as_ref()?.get(bundle::FILE)?;
    let Versioned { version } = serde_json::from_str(text).ok()?;
    Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_all_running_sidecars_read_is_written() {
        for (reads, before, expected) in [
            (&[][..], None, 2),
            (&[], Some(1), 2),
            (&[Some(2), Some(2)], Some(1), 2),
            (&[Some(2), Some(1)], Some(2), 1),
            (&[Some(1)], None, 1),
            // What is newer or makes no sense.
            (&[Some(7)], Some(2), 2),
            (&[Some(0)], Some(2), 1),
            // Before all have told, nobody is sent what they may not read.
            (&[None, Some(2)], Some(1), 1),
            (&[None, Some(1)], Some(2), 1),
            (&[None], Some(2), 2),
            (&[None], None, 2),
        ] {
            let version = common(reads.iter().copied(), before);
            assert_eq!(version, expected, "{reads:?} {before:?}");
        }
    }
}
