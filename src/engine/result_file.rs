//! A file of results that takes long to measure: that it can be written is known before, and it is there whole or not at
//! all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::core::{Error, Result};

/// A place for results, taken before they are measured. What was there stays until they are.
pub struct ResultFile {
    path: PathBuf,
    /// Beside it, so that it can take its name. Links, pipes and devices are written to as they are.
    part: Option<PathBuf>,
    file: File,
}

impl ResultFile {
    /// # Errors
    /// `Io` if nothing can be written there.
    pub fn create(path: &Path) -> Result<ResultFile> {
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            crate::bail_input!("{}: expected the name of a file", path.display());
        };
        let failed = |e| Error::io(path, e);
        let before = std::fs::symlink_metadata(path).ok();
        if before.as_ref().is_some_and(|meta| !meta.is_file()) {
            let file = File::options().write(true).create(true).truncate(false).open(path).map_err(failed)?;
            return Ok(ResultFile { path: path.to_owned(), part: None, file });
        }
        let part = path.with_file_name(format!(".{}.part-{}", name.to_string_lossy(), std::process::id()));
        let file = File::create(&part).map_err(failed)?;
        let created = ResultFile { path: path.to_owned(), part: Some(part), file };
        if let Some(meta) = before {
            created.file.set_permissions(meta.permissions()).map_err(failed)?;
        }
        Ok(created)
    }

    /// Writes `results` as JSON.
    pub fn write(mut self, results: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(results).map_err(|e| Error::runtime(e.to_string()))?;
        text.push('\n');
        let failed = |e| Error::io(&self.path, e);
        match &self.part {
            Some(part) => {
                self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all()).map_err(failed)?;
                std::fs::rename(part, &self.path).map_err(failed)
            }
            None => {
                if self.file.metadata().is_ok_and(|meta| meta.is_file()) {
                    self.file.set_len(0).map_err(failed)?;
                }
                self.file.write_all(text.as_bytes()).map_err(failed)
            }
        }
    }
}

impl Drop for ResultFile {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // Gone already where it has become the file.
            let _ = std::fs::remove_file(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        std::fs::write(&path, "before").unwrap();
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        drop(ResultFile::create(&path).unwrap());
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names()), ("before", 1));
        ResultFile::create(&path).unwrap().write(&[1, 2]).unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names()), ("[\n  1,\n  2\n]\n", 1));
        let message = |path: &Path| ResultFile::create(path).err().unwrap().to_string();
        let missing = dir.path().join("none/results.json");
        assert!(message(&missing).starts_with(&missing.display().to_string()), "{}", message(&missing));
        assert!(message(dir.path()).ends_with("expected the name of a file"));
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay_what_they_are_and_files_keep_their_mode() {
        use std::os::unix::fs::PermissionsExt;
        ResultFile::create(Path::new("/dev/null")).unwrap().write(&1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("results.json"), dir.path().join("link.json"));
        std::fs::write(&path, "longer than what comes").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        ResultFile::create(&link).unwrap().write(&1).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
        ResultFile::create(&path).unwrap().write(&2).unwrap();
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "2\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
