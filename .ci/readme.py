# jupyter nbconvert --config .ci/readme.py      writes README.md from nbs/index.ipynb
import re

from nbconvert.preprocessors import Preprocessor


class FromTheTop(Preprocessor):
    "Links as seen from the folder above nbs/, and code marked as Python."

    def preprocess(self, nb, resources):
        nb.metadata.language_info = {"name": "python"}
        return super().preprocess(nb, resources)

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "markdown":
            cell.source = self.relink(cell.source)
        for data in (o.data for o in cell.get("outputs", []) if "data" in o):
            if "text/markdown" in data:
                data["text/markdown"] = self.relink(data["text/markdown"])
        return cell, resources

    @staticmethod
    def relink(text):
        def above(m):
            return f"]({m[1][3:] if m[1].startswith('../') else 'nbs/' + m[1]})"

        return re.sub(r"\]\((?!https?:|#)([^)]+)\)", above, text)


c = get_config()  # noqa: F821  (given by nbconvert)
c.NbConvertApp.notebooks = ["nbs/index.ipynb"]
c.NbConvertApp.export_format = "markdown"
c.NbConvertApp.output_base = "README"
c.NbConvertApp.use_output_suffix = True
c.FilesWriter.build_directory = "."
c.MarkdownExporter.preprocessors = [FromTheTop]
c.CoalesceStreamsPreprocessor.enabled = True
c.TagRemovePreprocessor.enabled = True
c.TagRemovePreprocessor.remove_input_tags = {"hide-input"}
c.TagRemovePreprocessor.remove_cell_tags = {"hide-cell"}
