//! The configuration file, written so that at any moment there is the old one or the new one and nothing between.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

/// A finished text beside the file whose place it is to take. Dropped before that, it goes.
#[derive(Debug)]
pub(super) struct Replacement {
    temporary: PathBuf,
    /// Never a symbolic link: what it points to is replaced, not the link.
    target: PathBuf,
}

impl Replacement {
    /// Writes `text` beside `file`, with the file's owner and mode. Whatever can fail fails here.
    pub(super) fn write(file: &Path, text: &str) -> Result<Replacement> {
        let place = || format!("{} cannot be saved", file.display());
        let target = fs::canonicalize(file).with_context(place)?;
        let old = fs::metadata(&target).with_context(place)?;
        let (Some(directory), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(anyhow!("{} is no file", target.display()));
        };
        let temporary = directory.join(format!(".{}.gatun-{}", name.to_string_lossy(), std::process::id()));
        let beside = || format!("{}: no new file can be made in {}", place(), directory.display());
        let mut new = create(&temporary).with_context(beside)?;
        let replacement = Replacement { temporary, target };
        let made = new.metadata().with_context(place)?;
        if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
            fchown(&new, Some(old.uid()), Some(old.gid()))
                .with_context(|| format!("{}: it is another user's, and has to stay theirs", place()))?;
        }
        // After the owner: a change of owner takes bits of the mode away.
        new.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777)).with_context(place)?;
        new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).with_context(place)?;
        Ok(replacement)
    }

    /// Puts it in the file's place, for good: also on disk.
    pub(super) fn commit(self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.target)?;
        let directory = self.target.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After a commit there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Nobody else may read it before it has the file's mode. One of the same name is a dead process's.
fn create(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            open()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("a.toml"), directory.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("a.toml", &link).unwrap();
        let replacement = Replacement::write(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old", "not before it is committed");
        replacement.commit().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(directory.path()), ["a.toml", "link"]);
    }

    #[test]
    fn what_is_not_committed_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.toml");
        fs::write(&file, "old").unwrap();
        drop(Replacement::write(&file, "new").unwrap());
        assert_eq!(
            (names(directory.path()), fs::read_to_string(&file).unwrap()),
            (vec!["a.toml".into()], "old".into())
        );
    }

    #[test]
    fn a_place_without_room_is_told() {
        let error = Replacement::write(Path::new("/proc/version"), "new").unwrap_err();
        assert!(format!("{error:#}").contains("no new file can be made in /proc"), "{error:#}");
        assert!(Replacement::write(Path::new("/nonexistent/a.toml"), "new").is_err());
    }
}
