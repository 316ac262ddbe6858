//! Keeping paths that somebody else wrote inside the data folder.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// A path that would leave the data folder.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("names the path {path:?}, which is not inside {root}")]
pub struct PathError {
    path: String,
    root: String,
}

/// `root` joined with `relative`, if that stays inside `root`: no `..`, no other root, and no
/// symbolic link that leads out.
pub(super) fn inside(root: &Path, relative: &str) -> Result<PathBuf, PathError> {
    let refuse = || PathError {
        path: relative.to_owned(),
        root: root.display().to_string(),
    };
    let given = Path::new(relative);
    let plain = given
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if relative.is_empty() || relative.contains('\0') || !plain {
        return Err(refuse());
    }
    let path = root.join(given);
    // What does not exist cannot be a link; its parents can.
    let mut existing = path.as_path();
    loop {
        match existing.canonicalize() {
            Ok(real) if real.starts_with(root) => return Ok(path),
            Ok(_) => return Err(refuse()),
            Err(_) if existing.symlink_metadata().is_ok() => return Err(refuse()),
            Err(_) => existing = existing.parent().ok_or_else(refuse)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leaves_the_data_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("recordings")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("recordings/out")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("recordings/dangling")).unwrap();
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "recordings/../../x",
            "recordings/..",
            "recordings/out/passwd",
            "recordings/dangling",
            "recordings/out",
            "a\0b",
        ] {
            assert!(inside(&root, bad).is_err(), "{bad:?}");
        }
        for good in [
            "recordings/a.ogg",
            "./recordings/a.ogg",
            "recordings/sub/a.ogg",
            "new",
        ] {
            assert!(inside(&root, good).is_ok(), "{good:?}");
        }
    }
}
