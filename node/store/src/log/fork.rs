//! Reading a suffix that lost, as it was saved.

use std::path::Path;

use crate::disk::{Disk, OpenMode};
use crate::fault::DiskFault;
use crate::file_header::{FILE_HEADER_BYTES, FileHeader, FileKind};
use crate::log::{Log, LogError, VisitError};
use crate::scan::{FrameView, Scan, ScanError};

impl Log {
    /// Shows every frame of a file that [`Log::truncate_after`] saved, in order.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if the file is not whole, after having shown what comes before the damage.
    pub fn read_fork(
        disk: &dyn Disk,
        path: &Path,
        visit: &mut dyn FnMut(FrameView<'_>) -> Result<(), VisitError>,
    ) -> Result<(), LogError> {
        let corrupt = |at| LogError::Corrupt { path: path.to_path_buf(), at };
        let file = disk.open(path, OpenMode::Read).map_err(DiskFault::at("open fork", path))?;
        let header = FileHeader::read(&*file).map_err(DiskFault::at("read fork", path))?;
        let header = header.ok().filter(|header| header.kind == FileKind::Fork).ok_or_else(|| corrupt(0))?;
        let limit = file.len().map_err(DiskFault::at("measure fork", path))?;
        let scan = Scan { file: &*file, number: header.number, salt: header.salt, limit };
        let walked = scan.walk(FILE_HEADER_BYTES, None, visit).map_err(|error| match error {
            ScanError::Disk(error) => DiskFault::at("read fork", path)(error).into(),
            ScanError::Newer { at, found } => LogError::Newer {
                path: path.to_path_buf(),
                detail: format!("frame at {at} has version {found}"),
            },
            ScanError::Visit { at, source } => LogError::Refused { path: path.to_path_buf(), at, source },
        })?;
        if walked.end == limit { Ok(()) } else { Err(corrupt(walked.end)) }
    }
}
