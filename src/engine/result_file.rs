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
    /// Beside it, so that it can take its name; pipes and devices are written to as they are.
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
        let part = path.with_file_name(format!(".{}.part-{}", name.to_string_lossy(), std::process::id()));
        let part = (path.is_file() || !path.exists()).then_some(part);
        let file = File::create(part.as_deref().unwrap_or(path)).map_err(|e| Error::io(path, e))?;
        Ok(ResultFile { path: path.to_owned(), part, file })
    }

    /// Writes `results` as JSON.
    pub fn write(mut self, results: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(results).map_err(|e| Error::runtime(e.to_string()))?;
        text.push('\n');
        let failed = |e| Error::io(&self.path, e);
        self.file.write_all(text.as_bytes()).map_err(failed)?;
        match &self.part {
            Some(part) => {
                self.file.sync_all().and_then(|()| std::fs::rename(part, &self.path)).map_err(failed)
            }
            None => Ok(()),
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
        #[cfg(unix)]
        ResultFile::create(Path::new("/dev/null")).unwrap().write(&1).unwrap();
    }
}
